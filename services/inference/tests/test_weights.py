"""Where weights come from, in which order, and what is refused."""

from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file
from weights_store import D0, SEVEN, store

from detserver.errors import WeightsRefused
from detserver.models.model_sets import ModelSpec, create_model
from detserver.models.weights import fingerprint


@pytest.fixture(scope="module")
def weights_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """d0.pth and d0.safetensors with equal weights, and seven.pth of a head of 7 classes."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    state = create_model(D0).state_dict()
    torch.save(state, folder / "d0.pth")
    save_file(state, folder / "d0.safetensors")
    torch.save(create_model(SEVEN).state_dict(), folder / "seven.pth")
    return folder


def place(source: Path, data: Path, name: str) -> None:
    (data / "weights").mkdir(parents=True, exist_ok=True)
    (data / "weights" / name).write_bytes(source.read_bytes())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_file_comes_first_and_is_what_the_model_holds(weights_files: Path, tmp_path: Path, suffix: str):
    place(weights_files / f"d0{suffix}", tmp_path, f"tf_efficientdet_d0{suffix}")
    local = store(tmp_path)
    found = local.get(D0)
    assert found.source == "local"
    expected = torch.load(weights_files / "d0.pth", weights_only=True)
    assert found.fingerprint == fingerprint(expected)
    for name, value in local.model(D0).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_checkpoint_of_training_is_read_by_its_ema_weights(weights_files: Path, tmp_path: Path):
    expected = torch.load(weights_files / "d0.pth", weights_only=True)
    other = {name: torch.zeros_like(value) for name, value in expected.items()}
    (tmp_path / "weights").mkdir()
    checkpoint = {"epoch": 7, "state_dict": other, "state_dict_ema": {f"module.{k}": v for k, v in expected.items()}}
    torch.save(checkpoint, tmp_path / "weights" / "tf_efficientdet_d0.pth")
    assert store(tmp_path).get(D0).fingerprint == fingerprint(expected)


def test_a_file_of_another_model_is_refused_with_what_differs(weights_files: Path, tmp_path: Path):
    place(weights_files / "seven.pth", tmp_path, "tf_efficientdet_d0.pth")
    with pytest.raises(WeightsRefused) as refused:
        store(tmp_path).get(D0)
    message = str(refused.value)
    assert "tf_efficientdet_d0 with 90 classes" in message
    assert "the file looks like num_classes = 7, and the configuration says 90" in message
    assert "take the file away" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04cos\nsystem\n."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes, suffix: str):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"tf_efficientdet_d0{suffix}").write_bytes(content)
    with pytest.raises(WeightsRefused, match="cannot be read as weights of tf_efficientdet_d0"):
        store(tmp_path).get(D0)


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "run",))

    (tmp_path / "weights").mkdir()
    torch.save({"state_dict": Evil()}, tmp_path / "weights" / "tf_efficientdet_d0.pth")
    with pytest.raises(WeightsRefused):
        store(tmp_path).get(D0)
    assert not (tmp_path / "run").exists()


def test_a_nan_in_a_file_is_refused(weights_files: Path, tmp_path: Path):
    state = torch.load(weights_files / "d0.pth", weights_only=True)
    state["box_net.predict.conv_pw.bias"][3] = float("nan")
    (tmp_path / "weights").mkdir()
    torch.save(state, tmp_path / "weights" / "tf_efficientdet_d0.pth")
    with pytest.raises(WeightsRefused, match=r"box_net.predict.conv_pw.bias .* NaN"):
        store(tmp_path).get(D0)


def test_a_file_that_a_model_set_names_must_be_there(tmp_path: Path):
    spec = ModelSpec("fish", "tf_efficientdet_d0", 7, weights_file=tmp_path / "fish.pth")
    with pytest.raises(WeightsRefused, match="there is no weights file"):
        store(tmp_path).get(spec)


def test_random_weights_are_calibrated_once_and_kept(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    found = store(data_dir).get(D0)
    assert found.source == "random"

    def never(*_: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr("detserver.models.calibrate.calibrated_state_dict", never)
    assert store(data_dir).get(D0).fingerprint == found.fingerprint


def test_a_model_that_nobody_can_draw_weights_for_says_so(tmp_path: Path):
    with pytest.raises(WeightsRefused, match="efficientdet_es has no calibrated random weights"):
        store(tmp_path).get(ModelSpec("small", "efficientdet_es", 90))


def test_the_server_answers_from_the_local_file_and_says_so(start_server, weights_files: Path, tmp_path: Path, photos):
    place(weights_files / "d0.safetensors", tmp_path / "data", "tf_efficientdet_d0.safetensors")
    (tmp_path / "sets.toml").write_text(
        '[[model_sets.own.models]]\narchitecture = "tf_efficientdet_d0"\nnum_classes = 90'
    )
    server = start_server(
        data_dir=str(tmp_path / "data"),
        model_sets_file=str(tmp_path / "sets.toml"),
        default_model_set="own",
        preload="baseline",
    )
    model = httpx.get(f"{server.url}/model-sets/own").json()["models"][0]
    assert model["source"] == "local"
    assert 'source="local"' in httpx.get(f"{server.url}/metrics").text
    # effdet's own initialisation: all scores near 0.01, unlike the calibrated ones.
    scores = server.infer("baseline", files={"file": photos[0].read_bytes()}).json()["detections"][0]["scores"]
    assert max(scores) < 0.1


def test_the_server_refuses_a_file_of_another_model(start_server, weights_files: Path, tmp_path: Path, photos):
    place(weights_files / "seven.pth", tmp_path / "data", "tf_efficientdet_d0.pth")
    server = start_server(wait=False, data_dir=str(tmp_path / "data"), preload="invalid")
    while not httpx.get(f"{server.url}/ready").is_success:
        pass
    answer = server.infer("baseline", files={"file": photos[0].read_bytes()})
    assert answer.status_code == 409
    assert "tf_efficientdet_d0 with 90 classes" in answer.json()["detail"]
    assert "Traceback" not in server.log
