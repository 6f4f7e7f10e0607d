"""`detbench run --protocol oip`: any server of the Open Inference Protocol, measured and compared as ours is."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_oip_server import TENSORS, SmallOipServer
from stub_server import BOX, MODEL, StubServer, entry

from detbench.api.oip import OipClient
from detbench.api.protocol import Oip, OutputTensors, Tensors
from detbench.api.schemas import ModelDetections
from detbench.errors import MalformedOutput, ServerError
from detbench.measure.server_process import ServerProcess
from detbench.results.sweep import Sweep


def results() -> Sweep:
    (path,) = Path("outputs").glob("*/results.json")
    return Sweep.model_validate_json(path.read_bytes())


@pytest.fixture
def reference(detbench) -> None:
    """The reference of a server whose detector finds BOX alone."""
    with StubServer(entry("baseline")) as stub:
        stub.device = "cpu"
        assert detbench("reference", "--host", stub.host, "--max-images", "2") == 0


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    path = tmp_path / "tensors.toml"
    path.write_text(TENSORS)
    return path


def test_a_server_that_is_not_ours_is_measured_and_compared(detbench, reference: None, tensors: Path):
    with SmallOipServer([BOX]) as server:
        status = detbench(
            *("run", "--protocol", "oip", "--host", server.url, "--implementations", "finder", "--tensors", tensors),
            *("--users", "2", "--duration", "2", "--max-images", "2", "--compare-outputs"),
        )
    assert status == 0
    sweep = results()
    (run,) = sweep.runs
    assert run.load is not None
    assert run.load.answered > 20
    assert run.load.failed == 0
    assert run.audit is not None
    assert (run.audit.right, run.audit.audited) == (run.load.answered, run.load.answered)
    assert run.load.stages_ms == pytest.approx({"queue": 1, "preprocess": 2, "forward": 4, "serialise": 1})
    assert run.load.batch_size_mean == pytest.approx(2, rel=0.05)
    (comparison,) = sweep.comparisons
    assert comparison.gate.passed
    assert set(server.calls) == {"/v2/models/finder/infer"}
    assert sweep.environment.device_name.startswith("small 7 at")
    assert sweep.problems == []


@pytest.mark.slow
def test_a_run_that_was_broken_off_goes_on(detbench, reference: None, tensors: Path, capsys):
    with SmallOipServer([BOX]) as server:
        assert not detbench(
            *("run", "--protocol", "oip", "--host", server.url, "--implementations", "finder", "--tensors", tensors),
            *("--users", "1", "2", "--duration", "1", "--max-images", "2", "--compare-outputs"),
        )
        (path,) = Path("outputs").glob("*/results.json")
        whole = Sweep.model_validate_json(path.read_bytes())
        path.write_text(whole.model_copy(update={"runs": whole.runs[:1], "ended": None}).model_dump_json())
        capsys.readouterr()
        assert detbench("run", "--resume", path.parent) == 0
    again = results()
    assert again.runs[0] == whole.runs[0]
    assert [str(run.offered) for run in again.runs] == ["1 user", "2 users"]
    assert again.runs[1].load is not None
    assert again.runs[1].load.answered > 10
    assert "finder, 1 user:" not in capsys.readouterr().out


def test_wrong_answers_are_found(detbench, reference: None, tensors: Path, capsys):
    moved = [BOX[0] + 1, *BOX[1:]]
    with SmallOipServer([moved], statistics=False) as server:
        status = detbench(
            *("run", "--protocol", "oip", "--host", server.url, "--implementations", "finder", "--tensors", tensors),
            *("--users", "1", "--duration", "1", "--max-images", "2", "--compare-outputs"),
        )
    assert status == 1
    sweep = results()
    assert not sweep.comparisons[0].gate.passed
    assert sweep.runs[0].load is not None
    assert sweep.runs[0].load.stages_ms == {}
    assert "finder claims to be exact and is not" in capsys.readouterr().out


@pytest.mark.slow
def test_a_detserver_is_measured_by_either_protocol(detbench, server: ServerProcess):
    common = ("--max-images", "2", "--duration", "3", "--users", "1", "--compare-outputs", "--implementations")
    assert detbench("reference", "--host", server.host, "--max-images", "2") == 0
    assert detbench("run", "--host", server.host, *common, "invalid", "baseline") == 0
    for path in Path("outputs").glob("*-single"):
        path.rename(path.with_name("native"))
    assert detbench("run", "--protocol", "oip", "--host", server.host, *common, "baseline", "invalid") == 0
    by_oip = next(Sweep.model_validate_json(p.read_bytes()) for p in Path("outputs").glob("*-single/results.json"))
    native = Sweep.model_validate_json(Path("outputs/native/results.json").read_bytes())
    runs = {run.implementation: run for run in by_oip.runs}
    for run in native.runs:
        same = runs[run.implementation]
        assert run.load is not None
        assert same.load is not None
        assert same.load.failed == 0
        assert set(same.load.stages_ms) == set(run.load.stages_ms)
        assert same.audit is not None
        assert run.audit is not None
        assert (same.audit.right == same.audit.audited) == (run.audit.right == run.audit.audited)
    for comparison in native.comparisons:
        other = by_oip.comparison(comparison.implementation)
        assert other is not None
        assert other.overall == comparison.overall
    assert runs["baseline"].memory is not None
    assert runs["baseline"].memory.resident_peak_mb is not None
    assert runs["baseline"].memory.resident_peak_mb > 100


def test_what_is_missing_is_told_with_the_remedy(detbench, tensors: Path, tmp_path: Path, capsys):
    def error(*arguments: object) -> str:
        assert detbench("run", *arguments) == 2
        return capsys.readouterr().err

    oip = ("--protocol", "oip")
    assert "--host" in error(*oip)
    assert "--ablation" in error(*oip, "--host", "http://127.0.0.1:9", "--ablation")
    assert "add that" in error("--tensors", tensors)
    assert "detbench reference --model-set single" in error(*oip, "--host", "http://127.0.0.1:9")
    with StubServer(entry("baseline")) as stub:
        assert detbench("reference", "--host", stub.host, "--max-images", "2") == 0
        capsys.readouterr()
        assert "is not in it" in error(*oip, "--host", "http://127.0.0.1:9", "--max-images", "3")
    wrong = tmp_path / "wrong.toml"
    few = (*oip, "--max-images", "2", "--host", "http://127.0.0.1:9", "--tensors", wrong)
    assert "wrong.toml" in error(*few)
    wrong.write_text("[[outputs]]\nboxes = 3")
    assert "outputs.0.boxes" in error(*few)
    wrong.write_text("[[outputs]]\nbox = 'b'")
    assert "outputs.0.box" in error(*few)
    wrong.write_text("[[outputs]]\n[[outputs]]")
    assert "2 of [[outputs]], and 1 detectors: tf_efficientdet_d0" in error(*few)
    with SmallOipServer([BOX]) as server:
        at = (*oip, "--host", server.url, "--max-images", "2", "--tensors", tensors)
        assert "name them in --implementations" in error(*at)
        assert "nothing at /v2/models/nonsense" in error(*at, "--implementations", "nonsense")


IMAGE = io.BytesIO()
Image.new("RGB", (200, 100)).save(IMAGE, "PNG")
ORDERS = {"xyxy": [10, 20, 40, 60], "yxyx": [20, 10, 60, 40], "xywh": [10, 20, 30, 40], "cxcywh": [25, 40, 30, 40]}


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_boxes_of_every_order_become_corners_in_pixels(order, relative: bool):
    sides = {"xyxy": [200, 100, 200, 100], "yxyx": [100, 200, 100, 200]}.get(order, [200, 100, 200, 100])
    box = np.array(ORDERS[order], float) / (sides if relative else 1)
    protocol = Oip(
        models=(MODEL,),
        tensors=Tensors(outputs=(OutputTensors(order=order, relative=relative, first_label=0),)),
    )
    answer = protocol.inference(an_answer([[0, 0, 1, 1], box.tolist()], [0.2, 0.7], [3, 4]), IMAGE.getvalue())
    (found,) = answer.detections
    assert found.boxes[0] == pytest.approx((10, 20, 40, 60))
    assert (found.scores, found.labels) == ([0.7, 0.2], [5, 4])


def test_an_answer_names_its_replica():
    protocol = Oip(models=(MODEL,))
    named = json.loads(an_answer([], [], [])) | {"parameters": {"replica": "r1", "queue_ms": 1.5}}
    assert protocol.inference(json.dumps(named).encode(), b"").replica == "r1"
    assert protocol.inference(an_answer([], [], []), b"").replica is None


def an_answer(boxes: list, scores: list, labels: list, /, **changed: object) -> bytes:
    tensors = {
        "boxes": ("FP32", [len(boxes), 4], [*itertools.chain(*boxes)]),
        "scores": ("FP32", [len(scores)], scores),
    }
    tensors |= {"labels": ("INT64", [len(labels)], labels), "model": ("INT32", [len(labels)], [0] * len(labels))}
    tensors |= changed
    outputs = [
        {"name": name, "datatype": tensor[0], "shape": tensor[1], "data": tensor[2]}
        for name, tensor in tensors.items()
        if tensor
    ]
    return json.dumps({"model_name": "m", "outputs": outputs}).encode()


MALFORMED = {
    "no JSON": (b"{", "truncated"),
    "no tensors": (b'{"outputs": 3}', "truncated"),
    "no scores": (an_answer([], [], [], scores=None), "no tensor scores"),
    "lengths": (an_answer([[1, 2, 3, 4]], [0.5, 0.5], [1, 1]), "differ in length"),
    "shape": (an_answer([[1, 2, 3, 4]], [0.5], [1], boxes=("FP32", [2, 4], [1.0])), "truncated"),
    "NaN": (an_answer([[1, 2, 3, float("nan")]], [0.5], [1]), "finite"),
    "detector": (an_answer([[1, 2, 3, 4]], [0.5], [1], model=("INT32", [1], [1])), "not one of 1 detectors"),
    "strings": (an_answer([[1, 2, 3, 4]], [0.5], [1], labels=("BYTES", [1], ["cat"])), "truncated"),
    "a word for a label": (an_answer([[1, 2, 3, 4]], [0.5], ["cat"]), "no number of its kind"),
    "a word for a score": (an_answer([[1, 2, 3, 4]], ["x"], [1]), "a score is no number"),
    "no label": (an_answer([[1, 2, 3, 4]], [0.5], [None]), "no number of its kind"),
    "an infinite label": (an_answer([[1, 2, 3, 4]], [0.5], [float("inf")]), "no number of its kind"),
    "half a detector": (an_answer([[1, 2, 3, 4]], [0.5], [1], model=("INT32", [1], [0.5])), "not one of 1 detectors"),
    "less than none": (an_answer([[1, 2, 3, 4]], [0.5], [1], model=("INT32", [1], [-1])), "not one of 1 detectors"),
    "no data": (b'{"outputs": [{"name": "boxes", "datatype": "FP32", "shape": [1, 4]}]}', "truncated"),
    "a list of parameters": (b'{"outputs": [], "parameters": [1]}', "truncated"),
    "no milliseconds": (b'{"outputs": [], "parameters": {"queue_ms": "x"}}', "truncated"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_answers_are_told_apart_without_values(case: str):
    content, reason = MALFORMED[case]
    with pytest.raises(ValueError, match=reason):
        Oip(models=(MODEL,)).inference(content, IMAGE.getvalue())


def test_data_may_be_nested_and_padded():
    names = OutputTensors(count="count")
    nested = {"boxes": ("FP32", [1, 2, 4], [[[1, 2, 3, 4], [0, 0, 0, 0]]]), "count": ("INT32", [1, 1], [[1]])}
    content = an_answer([[1, 2, 3, 4]] * 2, [0.5, 0.0], [1.0, 0.0], **nested)
    (found,) = Oip(models=(MODEL,), tensors=Tensors(outputs=(names,))).inference(content, b"").detections
    assert (found.boxes, found.scores, found.labels) == ([(1, 2, 3, 4)], [0.5], [1])
    nothing = an_answer([], [], [], count=("INT32", [1], [0]))
    (found,) = Oip(models=(MODEL,), tensors=Tensors(outputs=(names,))).inference(nothing, b"").detections
    assert found.boxes == []


def test_models_are_told_apart_by_their_number_and_keep_their_order():
    content = an_answer(
        [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]], [0.5, 0.9, 0.8], [1, 2, 3], model=("INT32", [3], [1, 0, 1])
    )
    found = Oip(models=("a", "b", "c")).inference(content, IMAGE.getvalue()).detections
    assert found == [
        ModelDetections(model_name="a", boxes=[(5, 6, 7, 8)], scores=[0.9], labels=[2]),
        ModelDetections(model_name="b", boxes=[(9, 9, 9, 9), (1, 2, 3, 4)], scores=[0.8, 0.5], labels=[3, 1]),
        ModelDetections(model_name="c", boxes=[], scores=[], labels=[]),
    ]


def test_a_client_tells_what_a_server_refuses():
    with SmallOipServer([]) as server, OipClient(server.url, Oip(models=(MODEL,), tensors=Tensors())) as client:
        with pytest.raises(ServerError, match="nothing at /v2/models/other"):
            client.infer("other", "single", b"x", "image/png")
        with pytest.raises(ServerError, match="nothing at /v2/repository/models/other/load"):
            client.load("other", "single")
    protocol = Oip(models=(MODEL,), tensors=Tensors(input="photo", shape=(1, 1), encoding="json"))
    with SmallOipServer([]) as server, OipClient(server.url, protocol) as client:
        with pytest.raises(MalformedOutput, match="no tensor boxes"):
            client.infer("finder", "single", IMAGE.getvalue(), "image/png")
