"""`python -m detserver.export`: a repository that Triton's own parser reads, of networks that answer as ours do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from small_detector import SMALL
from tritonclient.grpc import model_config_pb2

from detserver.export import export, main
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore

SET = ModelSet(
    "small",
    (
        replace(SMALL, name="one", num_classes=90),
        replace(SMALL, name="two", overrides=(*SMALL.overrides[:-1], ("image_size", (128, 256)))),
    ),
)


@pytest.fixture(scope="module")
def repository(store: WeightsStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "repository"
    models = export(folder, SET, store, max_batch_size=6, queue_delay_us=250, instances=2)
    assert models == [folder / "one", folder / "two"]
    return folder


def test_tritons_parser_reads_what_the_file_holds(repository: Path):
    for spec in SET.models:
        config = text_format.Parse(
            (repository / spec.name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
        )
        assert (config.name, config.platform, config.max_batch_size) == (spec.name, "onnxruntime_onnx", 6)
        assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
        assert config.dynamic_batching.max_queue_delay_microseconds == 250
        (group,) = config.instance_group
        assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_AUTO)
        session = onnxruntime.InferenceSession(repository / spec.name / "1" / "model.onnx")
        described = {each.name: list(each.dims) for each in (*config.input, *config.output)}
        held = {each.name: each.shape[1:] for each in (*session.get_inputs(), *session.get_outputs())}
        assert described == held
        assert described["pixels"] == [3, *spec.input.size]
        assert {each.data_type for each in (*config.input, *config.output)} == {model_config_pb2.TYPE_FP32}


def test_the_networks_answer_as_effdets_do(repository: Path, store: WeightsStore):
    pixels = torch.randn(3, 3, *SET.models[1].input.size, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(repository / "two" / "1" / "model.onnx")
    names = [f"{what}_{level}" for what in ("classes", "boxes") for level in range(5)]
    found = session.run(names, {"pixels": pixels.numpy()})
    with torch.inference_mode():
        classes, boxes = store.model(SET.models[1]).eval()(pixels)
    for ours, theirs in zip((*classes, *boxes), found, strict=True):
        assert np.allclose(ours.numpy(), theirs, atol=2e-3, rtol=1e-3)


def test_the_readme_says_what_goes_in(repository: Path):
    text = (repository / "README.md").read_text()
    assert "| two | tf_efficientdet_d0, 7 classes | 128x256 | 0.485, 0.456, 0.406 |" in text
    assert '"max_det_per_image": 100' in text


def test_what_is_there_is_not_written_over(repository: Path, store: WeightsStore, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("DETSERVER_DATA_DIR", str(tmp_path))
    (tmp_path / "tf_efficientdet_d0").mkdir()
    assert main([str(tmp_path), "--model-set", "mixed"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([str(tmp_path), "--model-set", "nonsense"]) == 2
    assert "no model set" in capsys.readouterr().err
