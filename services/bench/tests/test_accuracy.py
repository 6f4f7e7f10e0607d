"""`detbench accuracy`: mAP, what is lost of it, and how sure that is."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stub_server import BOX, StubServer, entry

from detbench.api.schemas import ModelDetections
from detbench.quality.coco_map import Annotations, difference_interval
from detbench.quality.outputs import ImageOutput

X1, Y1, X2, Y2 = BOX
# An IoU of 0.926 with BOX: found at nine of COCO's ten IoUs.
NEAR = [X1, Y1, X2 + 8, Y2]


def annotated(folder: Path, images: int) -> Path:
    """A folder of photographs with one box of category 1 in each."""
    folder.mkdir(exist_ok=True)
    for number in range(images):
        Image.new("RGB", (300, 300), (number, 0, 0)).save(folder / f"{number}.png")
    content = {
        "images": [{"id": number + 1, "file_name": f"{number}.png"} for number in range(images)],
        "categories": [{"id": 1, "name": "fish"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {"id": number + 1, "image_id": number + 1, "category_id": 1, "bbox": [X1, Y1, X2 - X1, Y2 - Y1]}
            for number in range(images)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def stub() -> Iterator[StubServer]:
    """baseline finds every box, `near` finds it a little off and does not claim more."""
    with StubServer(entry("baseline"), entry("near", exact=False)) as server:
        server.boxes["near"] = NEAR
        yield server


def test_what_is_lost_is_shown_and_held_to_the_users_limit(detbench, stub, tmp_path: Path, capsys):
    command = ("accuracy", "--host", stub.host, "--dataset", annotated(tmp_path / "fish", 3))
    assert detbench(*command, "--max-map-loss", "0.2") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["baseline", "tf_efficientdet_d0", "1.0000", "1.0000", "1.0000", "–", "–", "reference"] in rows
    shown = ["near", "tf_efficientdet_d0", "0.9000", "1.0000", "1.0000", "-0.1000", "-0.1000", "to", "-0.1000"]
    assert [*shown, "tolerated"] in rows
    assert detbench(*command) == 1
    assert "mAP 0.9000 is more than 0.01 below the reference's 1.0000" in capsys.readouterr().out
    baseline, found = json.loads((tmp_path / "outputs" / "accuracy" / "single.json").read_text())
    assert baseline["ground_truth"]["tf_efficientdet_d0"]["map"] == pytest.approx(1)
    assert found["ground_truth"]["tf_efficientdet_d0"]["difference"] == pytest.approx(-0.1)


def test_images_without_annotations_or_of_other_classes_have_no_accuracy(detbench, stub, photo_dir, tmp_path, capsys):
    assert detbench("accuracy", "--host", stub.host, "--dataset", photo_dir) == 2
    assert "has no annotations; name a dataset that has" in capsys.readouterr().err
    folder = annotated(tmp_path / "fish", 1)
    content = json.loads((folder / "instances.json").read_text())
    content["categories"].pop()
    (folder / "instances.json").write_text(json.dumps(content))
    assert detbench("accuracy", "--host", stub.host, "--dataset", folder) == 2
    said = capsys.readouterr()
    assert "its labels go up to 90, the category ids of instances.json to 1" in " ".join(said.out.split())
    assert "no model of the set has a mAP" in said.err


def test_baseline_alone_has_its_accuracy(detbench, stub, tmp_path: Path, capsys):
    folder = annotated(tmp_path / "fish", 2)
    assert detbench("accuracy", "--host", stub.host, "--dataset", folder, "--implementations", "baseline") == 0
    assert "1.0000" in capsys.readouterr().out
    assert sum(call == "/infer/baseline" for call in stub.calls) == 2  # each image once


def outputs(found: list[bool]) -> list[ImageOutput]:
    """The box in each image where `found`, and nothing in the others."""
    return [
        ImageOutput(
            image=f"{number}.png",
            sha256=str(number),
            detections=[
                ModelDetections(model_name="m", boxes=[tuple(BOX)] * each, scores=[0.9] * each, labels=[1] * each)
            ],
        )
        for number, each in enumerate(found)
    ]


def test_the_interval_holds_the_difference_and_narrows_with_images(tmp_path: Path):
    widths = []
    for images in (20, 320):
        annotations = Annotations(annotated(tmp_path / str(images), images) / "instances.json")
        half = (np.arange(images) % 2 == 0).tolist()
        ours, theirs = (annotations.evaluated(outputs(each), "m") for each in ([True] * images, half))
        low, high = difference_interval(ours, theirs)
        assert low < theirs.map - ours.map < high < 0
        assert difference_interval(ours, ours) == (0, 0)
        widths.append(high - low)
    # Sixteen times the images: a quarter of the width.
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35)


def test_a_model_that_finds_nothing_has_no_average_precision(tmp_path: Path):
    annotations = Annotations(annotated(tmp_path / "fish", 2) / "instances.json")
    found = annotations.evaluated(outputs([False, False]), "m")
    assert (found.map, found.ap50, found.ap75) == (0, 0, 0)
