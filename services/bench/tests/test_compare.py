"""The commands `reference` and `compare` against a real server; what no real server answers, against a thin one."""

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pushgateway_stub import StubPushgateway
from stub_server import StubServer, entry

from detbench.api.client import ServerClient
from detbench.api.schemas import ModelWeights
from detbench.datasets import Dataset, open_dataset
from detbench.errors import DatasetError, MalformedOutput, ReferenceMismatch, ServerError
from detbench.measure.server_process import ServerProcess
from detbench.quality.compare import compare
from detbench.quality.outputs import ImageOutput, collect
from detbench.quality.reference import load_reference, make_reference
from detbench.results.quality import Comparison

MODEL = "tf_efficientdet_d0"


@pytest.fixture
def outputs_dir(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def client(server: ServerProcess) -> Iterator[ServerClient]:
    with ServerClient(server.host) as opened:
        yield opened


@pytest.fixture(scope="session")
def outputs(server: ServerProcess, sample: Dataset) -> dict[str, list[ImageOutput]]:
    with ServerClient(server.host) as opened:
        return {name: collect(opened, name, "single", sample.photos) for name in ("baseline", "invalid")}


@pytest.fixture(scope="session")
def weights(server: ServerProcess) -> list[ModelWeights]:
    with ServerClient(server.host) as opened:
        return opened.model_set("single").models


def compared(reference: list[ImageOutput], candidate: list[ImageOutput], weights, annotations=None) -> Comparison:
    return compare(
        reference,
        candidate,
        implementation="candidate",
        model_set="single",
        exact=True,
        weights=weights,
        annotations=annotations,
    )


def test_reference_then_compare(detbench, server: ServerProcess, outputs_dir: Path, capsys):
    assert detbench("reference", "--host", server.host) == 0
    manifest = json.loads((outputs_dir / "reference" / "single" / "cpu" / "manifest.json").read_text())
    assert (len(manifest["images"]), manifest["weights"][0]["source"]) == (4, "random")
    assert detbench("compare", "--host", server.host, "--implementations", "baseline", "invalid") == 0
    baseline, invalid = json.loads((outputs_dir / "compare" / "single.json").read_text())
    assert baseline["gate"]["passed"] is True
    assert baseline["overall"]["boxes_mse"] < 1e-6
    assert baseline["overall"]["scores_mse"] < 1e-6
    assert baseline["overall"]["labels_accuracy"] == 1
    assert invalid["gate"]["passed"] is False
    assert invalid["overall"]["boxes_mse"] > 100
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["baseline", "all", *["0"] * 6, *["1.0000"] * 2, "0", "0", "exact", "passed"] in rows
    assert ["not", "exact", "failed"] in [row[-3:] for row in rows]
    assert {row[1] for row in rows if row[:1] == ["invalid"]} == {MODEL, "all"}  # whole names


def test_a_reference_that_belongs_is_kept_and_another_is_made_anew(detbench, server: ServerProcess, outputs_dir: Path):
    manifest = outputs_dir / "reference" / "single" / "cpu" / "manifest.json"
    keep = ("reference", "--keep", "--host", server.host)
    assert detbench(*keep, "--max-images", "2") == 0
    made = manifest.read_text()
    assert detbench(*keep, "--max-images", "2") == 0
    assert manifest.read_text() == made
    assert detbench(*keep, "--max-images", "3") == 0
    assert len(json.loads(manifest.read_text())["images"]) == 3


def test_output_errors_reach_a_pushgateway(detbench, server: ServerProcess, monkeypatch):
    assert detbench("reference", "--host", server.host) == 0
    with StubPushgateway() as gateway:
        monkeypatch.setenv("BENCHMARK_PUSHGATEWAY_URL", gateway.url)
        assert detbench("compare", "--host", server.host, "--implementations", "invalid") == 0
    ((path, figures),) = gateway.groups.items()
    assert path == "/metrics/job/detbench-compare/implementation/invalid/model_set/single"
    labels = '{implementation="invalid",model="all",model_set="single"}'
    assert f"detbench_labels_accuracy{labels} 0.0" in figures["detbench_labels_accuracy"]
    assert figures["detbench_gate_passed"].endswith(" 0.0")


def test_invalid_fails_the_gate_where_it_is_held_to_it(detbench, server: ServerProcess):
    assert detbench("reference", "--host", server.host) == 0
    assert detbench("compare", "--host", server.host, "--implementations", "invalid", "--gate", "all") == 1


def test_without_a_reference_the_remedy_is_told(detbench, server: ServerProcess, capsys):
    assert detbench("compare", "--host", server.host) == 2
    assert "detbench reference --model-set single" in capsys.readouterr().err


def test_other_images_are_refused(detbench, server: ServerProcess, tmp_path: Path, capsys):
    assert detbench("reference", "--host", server.host) == 0
    Image.new("RGB", (64, 64)).save(tmp_path / "astronaut.png")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "other.png")
    assert detbench("compare", "--host", server.host, "--dataset", tmp_path) == 2
    error = capsys.readouterr().err
    assert "astronaut.png has other content" in error
    assert "other.png is not in it" in error


def test_other_weights_are_refused(client: ServerClient, sample: Dataset, tmp_path: Path, weights):
    reference = make_reference(client, "single", sample, tmp_path)
    reference.check(weights, sample.photos)
    other = [weights[0].model_copy(update={"fingerprint": "f" * 64, "source": "local"})]
    with pytest.raises(ReferenceMismatch, match="local weights ffffffffffff, the reference random ones"):
        reference.check(other, sample.photos)


def test_equal_photos_each_have_their_answer_under_their_own_name(
    client: ServerClient, sample: Dataset, tmp_path: Path
):
    for name in ("again.png", "first.png", "renamed.jpg"):
        shutil.copy(sample.photos[0].path, tmp_path / name)
    photos = open_dataset(str(tmp_path), tmp_path).photos
    assert photos[2].content_type == "image/png"
    reference = make_reference(client, "single", Dataset("twice", photos[:2], ()), tmp_path)
    reference.check(reference.manifest.weights, photos)
    assert [output.image for output in reference.outputs_of(photos)] == ["again.png", "first.png", "renamed.jpg"]


def test_each_kind_of_device_has_its_own_reference(detbench, outputs_dir: Path, capsys):
    with StubServer(entry("baseline")) as stub:
        stub.device = "cpu"
        assert detbench("reference", "--host", stub.host) == 0
        on_cpu = (outputs_dir / "reference" / "single" / "cpu" / "manifest.json").read_text()
        stub.device = "cuda:1"
        assert detbench("compare", "--host", stub.host) == 2
        error = capsys.readouterr().err
        assert "there is no reference of single on cuda" in error
        assert "that of cpu does not judge its answers" in error
        assert "detbench reference --model-set single" in error
        stub.boxes["baseline"] = [10.0, 20.0, 110.0, 221.0]
        assert detbench("reference", "--keep", "--host", stub.host) == 0  # makes it
        for device in ("cuda:0", "cuda:1"):
            stub.device = device
            assert detbench("compare", "--host", stub.host) == 0
        stub.device = "cpu"
        assert detbench("compare", "--host", stub.host) == 1  # the other kind's answers
    assert (outputs_dir / "reference" / "single" / "cpu" / "manifest.json").read_text() == on_cpu


def test_a_reference_in_the_folder_of_another_kind_of_device_is_refused(detbench, outputs_dir: Path, capsys):
    with StubServer(entry("baseline")) as stub:
        assert detbench("reference", "--host", stub.host) == 0
        (outputs_dir / "reference" / "single" / "cuda").rename(outputs_dir / "reference" / "single" / "cpu")
        stub.device = "cpu"
        assert detbench("compare", "--host", stub.host) == 2
    assert "is of cuda:0. Make a new one" in capsys.readouterr().err


def test_a_sweep_and_an_ablation_go_by_the_servers_kind_of_device(detbench, outputs_dir: Path, tmp_path: Path):
    batched = entry("postprocess", technique="batched", adds_to="baseline")
    with StubServer(entry("baseline", technique="sequential eager"), batched) as stub:
        stub.latencies_ms = {"baseline": 80.0, "postprocess": 40.0}
        stub.device = "cpu"
        assert detbench("reference", "--host", stub.host) == 0
        stub.device = "cuda:0"
        stub.boxes = {name: [10.0, 20.0, 110.0, 221.0] for name in stub.entries}
        assert detbench("run", "--ablation", "--host", stub.host, "--repeats", "1", "--batches", "5") == 0
    assert {path.name for path in (outputs_dir / "reference" / "single").iterdir()} == {"cpu", "cuda"}


def test_a_part_of_the_references_images_will_do(
    client: ServerClient, sample: Dataset, data_dir: Path, tmp_path, weights
):
    make_reference(client, "single", sample, tmp_path)
    part = open_dataset("sample", data_dir, 2).photos
    reference = load_reference(tmp_path, "single", "cpu")
    reference.check(weights, part)
    assert [output.image for output in reference.outputs_of(part)] == ["astronaut.png", "chelsea.png"]


def test_a_damaged_reference_is_refused(client: ServerClient, sample: Dataset, tmp_path: Path):
    make_reference(client, "single", sample, tmp_path)
    stored = tmp_path / "reference" / "single" / "cpu" / "detections.json"
    stored.write_text(stored.read_text().replace("0.9", "0.8", 1))
    with pytest.raises(ReferenceMismatch, match="not what its manifest says"):
        load_reference(tmp_path, "single", "cpu")


def test_a_failed_reference_leaves_the_old_one(client: ServerClient, sample: Dataset, tmp_path: Path):
    before = make_reference(client, "single", sample, tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    broken = open_dataset(str(tmp_path), tmp_path)
    with pytest.raises(DatasetError, match=r"cut\.png: .* answered 400: .*; take it out of the folder"):
        make_reference(client, "single", broken, tmp_path)
    assert load_reference(tmp_path, "single", "cpu").manifest == before.manifest


def test_a_difference_of_a_thousandth_pixel_passes_and_a_tenth_does_not(outputs, weights):
    for shift, passes in ((1e-3, True), (0.1, False)):
        moved = [output.model_copy(deep=True) for output in outputs["baseline"]]
        for output in moved:
            boxes = np.array(output.detections[0].boxes) + shift
            object.__setattr__(output.detections[0], "boxes", [tuple(box) for box in boxes.tolist()])
        assert compared(outputs["baseline"], moved, weights).gate.passed is passes


def test_outputs_of_other_images_are_not_compared(outputs, weights):
    with pytest.raises(MalformedOutput, match="not of the reference's images"):
        compared(outputs["baseline"], outputs["baseline"][1:], weights)


def test_an_output_without_one_of_the_models_is_not_compared(outputs, weights):
    empty = [output.model_copy(update={"detections": []}) for output in outputs["baseline"]]
    with pytest.raises(MalformedOutput, match=f"0 outputs of {MODEL}"):
        compared(outputs["baseline"], empty, weights)


@pytest.mark.parametrize("box", ["[NaN, 0, 1, 1]", "[0, 0, Infinity, 1]", "[0, 0, 1]"])
def test_an_answer_with_a_nan_or_an_infinity_is_an_error(sample: Dataset, box: str):
    body = (
        '{"implementation": "x", "model_set": "single", "total_inference_time_ms": 1, "timings_ms": {},'
        ' "batch_size": 1,'
        f' "detections": [{{"model_name": "{MODEL}", "boxes": [{box}], "scores": [0.5], "labels": [1]}}]}}'
    ).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    broken = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=broken.serve_forever, daemon=True).start()
    with (
        ServerClient(f"http://127.0.0.1:{broken.server_port}") as client,
        pytest.raises(MalformedOutput, match="astronaut"),
    ):
        collect(client, "x", "single", sample.photos)
    broken.shutdown()


def test_photos_are_asked_for_as_many_at_a_time_as_wanted_and_answers_keep_their_order(sample: Dataset):
    with StubServer(entry("x")) as stub, ServerClient(stub.host) as client:
        stub.infer_s = 0.2
        names: list[str] = []
        one = collect(client, "x", "single", sample.photos, names.append)
        assert (stub.most_in_flight, names) == (1, [photo.name for photo in sample.photos])
        several = collect(client, "x", "single", sample.photos, names.append, concurrency=3)
    assert stub.most_in_flight == 3
    assert sorted(names[4:]) == sorted(names[:4])
    assert [output.image for output in one] == [output.image for output in several] == names[:4]
    assert (max(each.batch_size for each in one), max(each.batch_size for each in several)) == (1, 3)


def test_after_a_failure_no_further_photo_is_asked_for(sample: Dataset, tmp_path: Path):
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    photos = open_dataset(str(tmp_path), tmp_path).photos
    (tmp_path / "03.png").unlink()
    with StubServer(entry("x")) as stub, ServerClient(stub.host) as client:
        stub.infer_s = 0.2
        with pytest.raises(DatasetError, match=r"03\.png cannot be read"):
            collect(client, "x", "single", photos, concurrency=2)
        stub.refusals = {"/infer/x": (503, "no more")}
        with pytest.raises(ServerError, match="no more"):
            collect(client, "x", "single", photos[:3], concurrency=2)
    assert len(stub.calls) < 8


def test_compare_tells_the_batches(detbench, outputs_dir: Path, capsys):
    with StubServer(entry("baseline"), entry("other")) as stub:
        stub.infer_s = 0.2
        assert detbench("reference", "--host", stub.host) == 0
        assert detbench("compare", "--host", stub.host, "--concurrency", "4") == 0
    found = json.loads((outputs_dir / "compare" / "single.json").read_text())
    assert [each["batch_sizes"] for each in found] == [{"1": 1, "2": 1, "3": 1, "4": 1}] * 2
    printed = capsys.readouterr().out
    assert "4 images of sample, 4 at a time (batches: baseline 1 (1 image), 2 (1 image), 3 (1 image)" in printed


def test_what_compiles_is_left_out_unless_it_is_named(detbench, outputs_dir: Path, capsys):
    def compared_names(*arguments: str) -> list[str]:
        assert detbench("compare", "--host", stub.host, *arguments) == 0
        return [each["implementation"] for each in json.loads((outputs_dir / "compare" / "single.json").read_text())]

    entries = (
        entry("baseline"),
        entry("compiled", compiles=True),
        entry("other"),
        entry("elsewhere", unavailable="no GPU", compiles=True),
        entry("unfit", unsupported={"single": "one model only"}),
    )
    with StubServer(*entries) as stub:
        assert detbench("reference", "--host", stub.host) == 0
        assert compared_names() == ["baseline", "other"]
        line = "left out, as their first load takes minutes: compiled (name them in --implementations, or say all)"
        assert line in capsys.readouterr().out
        assert compared_names("--implementations", "compiled", "baseline") == ["compiled", "baseline"]
        assert compared_names("--implementations", "all") == ["baseline", "other", "compiled"]
        assert "left out" not in capsys.readouterr().out
        assert detbench("compare", "--host", stub.host, "--implementations", "unfit") == 2
    assert "unfit cannot be used here: one model only" in capsys.readouterr().err


def test_more_in_flight_than_a_queue_holds_is_refused(detbench, capsys):
    with pytest.raises(SystemExit):
        detbench("compare", "--concurrency", "33")
    assert "must be 32 or less" in capsys.readouterr().err


def test_a_comparison_that_is_broken_off_keeps_what_was_compared(detbench, outputs_dir: Path, monkeypatch):
    load = ServerClient.load

    def load_until_stopped(client: ServerClient, implementation: str, model_set: str):
        if implementation == "other":
            raise KeyboardInterrupt
        return load(client, implementation, model_set)

    with StubServer(entry("baseline"), entry("other")) as stub:
        assert detbench("reference", "--host", stub.host) == 0
        monkeypatch.setattr(ServerClient, "load", load_until_stopped)
        assert detbench("compare", "--host", stub.host) == 130
    (found,) = json.loads((outputs_dir / "compare" / "single.json").read_text())
    assert found["implementation"] == "baseline"


def test_mean_average_precision_against_ground_truth(outputs, weights, sample: Dataset, tmp_path: Path):
    """The ground truth is the reference's five best boxes of each image, so the reference finds them all."""
    images, boxes = [], []
    for number, output in enumerate(outputs["baseline"], 1):
        images.append({"id": number, "file_name": output.image, "width": 640, "height": 640})
        found = output.detections[0]
        for (x1, y1, x2, y2), label in list(zip(found.boxes, found.labels, strict=True))[:5]:
            size = [x1, y1, x2 - x1, y2 - y1]
            area = size[2] * size[3]
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": size,
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label, "name": str(label)} for label in range(1, 91)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    truth = compared(outputs["baseline"], outputs["invalid"], weights, path).ground_truth[MODEL]
    assert truth.map_baseline > 0.5
    assert truth.map < 0.01
    assert truth.difference == truth.map - truth.map_baseline


def test_models_of_other_classes_than_the_datasets_have_no_ground_truth(outputs, weights, tmp_path: Path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 7, "name": "ray"}]}))
    assert compared(outputs["baseline"], outputs["baseline"], weights, path).ground_truth == {}


def test_why_there_is_no_map_is_printed_once_and_kept(detbench, sample: Dataset, outputs_dir, tmp_path: Path, capsys):
    for photo in sample.photos:
        shutil.copy(photo.path, tmp_path / photo.name)
    (tmp_path / "_annotations.coco.json").write_text('[{"id": 1}]')
    with StubServer(entry("baseline"), entry("other")) as stub:
        assert detbench("reference", "--host", stub.host, "--dataset", tmp_path) == 0
        assert detbench("compare", "--host", stub.host, "--dataset", tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.count("no mAP: ") == 1
    assert "_annotations.coco.json is no COCO annotation file: it is a list; export the labels as COCO" in printed
    for found in json.loads((outputs_dir / "compare" / "single.json").read_text()):
        assert "it is a list" in found["ground_truth_notes"][0]
