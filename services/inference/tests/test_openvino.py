"""OpenVINO: the network's own answers, converted once, and refused where it cannot run."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from small_detector import CPU, SMALL, assert_same_answers

from detserver.implementations import Registry
from detserver.models.model_sets import ModelSet
from detserver.models.weights import WeightsStore
from detserver.recipes.backends import conversion, openvino_network
from detserver.recipes.backends.openvino_network import network, prepare, unavailable_reason

pytestmark = [
    pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed"),
    pytest.mark.xdist_group("small_detector"),  # one process converts for all
]


def test_its_answers_are_eager_ones(store: WeightsStore, photos: list[Path]):
    run = network(SMALL, store, "fp32", CPU)
    assert (run.precision, run.remark) == ("fp32", "")
    assert_same_answers(run, store, photos)


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_has_converted(store: WeightsStore):
    prepare(SMALL, store, "fp32")
    kept = sorted(path.name for path in (store.cache_dir / "openvino").glob(f"{SMALL.identity}_*"))
    assert not any(name.endswith(".partial") for name in kept), "nothing half-made is left"
    code = f"""
from pathlib import Path
import torch
from small_detector import CPU, SMALL
from detserver.models.weights import WeightsStore
from detserver.recipes.backends import openvino_network

openvino_network.exported = None  # what a conversion would start with
store = WeightsStore(Path({str(store.cache_dir.parent / "weights")!r}), Path({str(store.cache_dir)!r}), 2, False)
network = openvino_network.network(SMALL, store, "fp32", CPU)
print(network.precision, len(network(torch.zeros(1, 3, *SMALL.input.size))[0]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.stdout == "fp32 5\n", done.stderr
    assert sorted(path.name for path in (store.cache_dir / "openvino").glob(f"{SMALL.identity}_*")) == kept


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path):
    def fail(target: Path) -> None:
        (target / "half").touch()
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        conversion.make_once(tmp_path / "network", "converting", fail)
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_that_convert_the_first_wins(tmp_path: Path):
    def overtaken(target: Path) -> None:
        (target / "file").write_text("mine")
        (tmp_path / "network").mkdir()  # by another process, meanwhile
        (tmp_path / "network" / "file").write_text("theirs")

    conversion.make_once(tmp_path / "network", "converting", overtaken)
    assert [(path.name, (path / "file").read_text()) for path in tmp_path.iterdir()] == [("network", "theirs")]


def test_a_precision_that_the_cpu_does_not_have_is_told(store: WeightsStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(openvino_network._HINTS, "bf16", "f32")  # what OpenVINO does on a CPU without it
    run = network(SMALL, store, "bf16", CPU)
    assert run.precision == "fp32"
    assert run.remark == "in fp32: OpenVINO has no bf16 on this CPU"


def test_converting_is_no_part_of_a_load(store: WeightsStore, monkeypatch: pytest.MonkeyPatch):
    implementation = Registry().get("openvino")(ModelSet("one", (SMALL,)), store, CPU)
    implementation.prepare()
    monkeypatch.setattr(openvino_network, "exported", lambda *_: pytest.fail("converted in a load"))
    implementation.load()


def test_nothing_is_sent_to_anybody():
    openvino_network.import_openvino()
    assert sys.modules.get("openvino_telemetry") is None


def test_where_it_cannot_run_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    assert unavailable_reason(CPU) is None
    assert "DETSERVER_DEVICE=cpu" in str(unavailable_reason(torch.device("cuda")))
    monkeypatch.setattr(openvino_network, "find_spec", lambda _: None)
    assert "pip install 'detserver[openvino]'" in str(unavailable_reason(CPU))
