"""mAP against annotation files as tools and people really write them: a right number, or a line that says why not."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_folders import TESTDATA

from detbench.api.schemas import ModelDetections, ModelWeights
from detbench.errors import DatasetError
from detbench.quality.coco_map import Annotations
from detbench.quality.compare import compare
from detbench.quality.outputs import ImageOutput
from detbench.results.quality import Comparison

MODEL = "fish"
ODD = TESTDATA / "odd" / "coco"


def outputs(label: int = 1, names: tuple[str, ...] = ("a.jpg", "b.jpg")) -> list[ImageOutput]:
    """One box in the first image, and nothing in the others."""
    found = ModelDetections(model_name=MODEL, boxes=[(10, 10, 30, 30)], scores=[0.9], labels=[label])
    nothing = ModelDetections(model_name=MODEL, boxes=[], scores=[], labels=[])
    return [
        ImageOutput(image=name, sha256=name, detections=[nothing if number else found])
        for number, name in enumerate(names)
    ]


def compared(path: Path, classes: int = 1, found: list[ImageOutput] | None = None) -> Comparison:
    """The outputs compared with themselves and with the annotations."""
    model = ModelWeights(
        model_name=MODEL,
        architecture="tf_efficientdet_d0",
        num_classes=classes,
        image_size=(512, 512),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        fill_color=(128, 128, 128),
        configuration={},
        source="local",
        fingerprint="0" * 64,
    )
    found = found or outputs()
    names = {"implementation": "baseline", "model_set": "mine", "exact": True}
    return compare(found, found, **names, weights=[model], annotations=path)


def mean_average_precision(comparison: Comparison) -> float | None:
    truth = comparison.ground_truth.get(MODEL)
    return None if truth is None else truth.map


def plain() -> dict[str, Any]:
    """The box of `outputs` as COCO has it."""
    return {
        "images": [
            {"id": i, "file_name": f"{name}.jpg", "width": 100, "height": 100} for i, name in enumerate("ab", 1)
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "fish"}],
    }


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


# As ../shared/testdata/odd/README.md says; None is a line instead of a figure. A byte order mark and the area of a
# labelled object decide nothing, so files with an odd one have their figure.
SHARED = {
    "plain": 1,
    "no_info": 1,
    "subfolder_file_name": 1,
    "annotation_of_unknown_image": 1,
    "label_beyond_categories": 1,
    "float_ids": 1,
    "no_area": 1,
    "no_iscrowd": 1,
    "string_image_ids": 1,
    "annotation_id_0": 1,
    "bom": 1,
    "NaN_in_json": 1,
    "list_of_VIA_labelme": 1,  # in spite of its name a COCO file
    "bbox_missing_(keypoints_segm_only)": None,
    "annotation_of_unknown_category": None,
    "no_categories": None,
    "label_studio_list": None,
    "no_annotations_key_(image_info)": None,
    "zero-based_category": None,
}


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_file_gives_its_figure_or_the_reason(name: str):
    if not ODD.is_dir():
        pytest.skip(f"no odd annotation files in {ODD}")
    comparison = compared(ODD / f"{name}.json")
    assert mean_average_precision(comparison) == (pytest.approx(1) if SHARED[name] else None)
    assert len(comparison.ground_truth_notes) == (0 if SHARED[name] else 1)
    assert comparison.gate.passed


def test_every_shared_file_is_among_them():
    if not ODD.is_dir():
        pytest.skip(f"no odd annotation files in {ODD}")
    assert {path.stem for path in ODD.glob("*.json")} == set(SHARED)


Change = Callable[[dict[str, Any]], object]


def changed(part: str, **fields: object) -> Change:
    return lambda content: [entry.update(fields) for entry in content[part]]


def without(part: str, field: str) -> Change:
    return lambda content: [entry.pop(field) for entry in content[part]]


def added(part: str, *entries: object) -> Change:
    return lambda content: content[part].extend(entries)


def of_image(identity: object) -> Change:
    """The first image and its box with another id."""

    def change(content: dict[str, Any]) -> None:
        content["images"][0]["id"] = content["annotations"][0]["image_id"] = identity

    return change


CROWD = {"id": 9, "image_id": 2, "category_id": 1, "bbox": [0, 0, 90, 90], "iscrowd": 1}
ROBOFLOW = {"id": 0, "name": "fish-and-more", "supercategory": "none"}

RIGHT = {
    "an annotation of id 0": changed("annotations", id=0),
    "annotations without an id": without("annotations", "id"),
    "ids of 64 bits": of_image(2**62 + 1),
    "ids beyond 64 bits": of_image(10**25),
    "names as ids": of_image("a.jpg"),
    "image 0": of_image(0),
    "numbers and their text": changed("annotations", image_id="1", category_id="1"),
    "numbers and their float": changed("annotations", image_id=1.0, category_id=1.0),
    "no area": without("annotations", "area"),
    "an area of null": changed("annotations", area=None),
    "an area of NaN": changed("annotations", area=float("nan")),
    "a negative area": changed("annotations", area=-1),
    "an area beyond the evaluator's largest": changed("annotations", area=1e11),
    "no iscrowd": without("annotations", "iscrowd"),
    "an iscrowd of null": changed("annotations", iscrowd=None),
    "an iscrowd of false": changed("annotations", iscrowd=False),
    "coordinates as text": changed("annotations", bbox=["10", "10.0", "20", "2e1"]),
    "folders of Windows": lambda content: content["images"][0].update(file_name="dir\\sub\\a.jpg"),
    "an address": lambda content: content["images"][0].update(file_name="s3://bucket/images/a.jpg"),
    "two entries of one image": added("images", {"id": 7, "file_name": "a.jpg"}),
    "entries of null": lambda content: [entries.append(None) for entries in content.values()],
    "categories with gaps": added("categories", {"id": 90, "name": "toothbrush"}),
    "a category listed twice": added("categories", {"id": 1, "name": "fish"}),
    "Roboflow's category 0 without a box": added("categories", ROBOFLOW),
    "boxes of images that it does not list": added("annotations", {"id": 5, "image_id": 99, "category_id": 1}),
    "a crowd in another image": added("annotations", CROWD),
    "polygons and keypoints beside": changed("annotations", segmentation=[[1, 2]], keypoints=[1, 2, 0], score=0.5),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_what_tools_write_otherwise_has_the_right_figure(kind: str, tmp_path: Path):
    content = plain()
    RIGHT[kind](content)
    classes = max(category["id"] for category in content["categories"] if category)
    comparison = compared(written(tmp_path, content), classes)
    assert mean_average_precision(comparison) == pytest.approx(1)
    assert comparison.ground_truth_notes == []


PARTLY = {
    "without a bbox of x, y, width and height": {"bbox": None},
    "2 annotations": {"bbox": []},
    "width and height: left out": {"bbox": [10, 10, -20, 20]},
    "x, y, width": {"bbox": [10, 10, float("nan"), 20]},
    "2 annotations of categories that it does not list (99)": {"category_id": 99},
    "2 annotations without a bbox": {"bbox": [10, 10, 2**70, 20]},
    "of categories that it does not list (None)": {"category_id": None},
}


@pytest.mark.parametrize("line", PARTLY)
def test_what_cannot_be_used_is_left_out_with_a_line(line: str, tmp_path: Path):
    content = plain()
    content["annotations"] += [content["annotations"][0] | {"image_id": 2} | PARTLY[line] for _ in range(2)]
    comparison = compared(written(tmp_path, content))
    assert mean_average_precision(comparison) == pytest.approx(1)
    (note,) = comparison.ground_truth_notes
    assert line in note


NO_FIGURE = {
    "counts categories from 0": changed("annotations", category_id=0),
    "category ids that are no numbers from 1": changed("categories", id="fish"),
    "lists no categories": lambda content: content.update(categories=[]),
    "has no list of categories": lambda content: content.pop("categories"),
    "has no list of annotations": lambda content: content.update(annotations=None),
    "has no box to find in these images": lambda content: content.update(annotations=[]),
    "1 annotation without a bbox of x, y, width and height: left out": without("annotations", "bbox"),
    "1 annotation of categories that it does not list (2)": changed("annotations", category_id=2),
    "shares of the image": changed("annotations", bbox=[0.1, 0.1, 0.2, 0.2]),
    "has no box to find": changed("annotations", iscrowd=1),  # a crowd is no single object
    "is of other images: 'c.jpg', not 'a.jpg'": changed("images", file_name="c.jpg"),
    "is of other images: 'no image', not 'a.jpg'": lambda content: content.update(images=[]),
    "2 names of images that share it, or their id": changed("images", id=1),
    "1 name of images that share it": added("images", {"id": 3, "file_name": "train/a.jpg"}),
    "its labels go up to 1, the category ids of instances.json to 7": added("categories", {"id": 7, "name": "ray"}),
}


@pytest.mark.parametrize("reason", NO_FIGURE)
def test_what_has_no_figure_says_why_and_the_comparison_goes_on(reason: str, tmp_path: Path):
    content = plain()
    NO_FIGURE[reason](content)
    comparison = compared(written(tmp_path, content))
    assert comparison.ground_truth == {}
    (note,) = comparison.ground_truth_notes
    assert reason in note
    assert "no mAP" in note
    assert comparison.gate.passed


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no JSON"),
        (b"version https://git-lfs.github.com/spec/v1", "is no JSON"),
        (b'{"images": [', "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        ('{"images": "Möwe"}'.encode("latin-1"), "is no JSON"),
        (b"null", "without a list of images"),
        (b'[{"id": 1, "annotations": []}]', "it is a list"),
        (b'{"version": "5.0.1", "shapes": [], "imagePath": "a.jpg"}', "like that of labelme"),
        (b'{"_via_img_metadata": {}}', "like that of VIA"),
        (b'{"images": {"1": "a.jpg"}}', "without a list of images"),
    ],
)
def test_what_is_no_coco_file_is_told(content: bytes, reason: str, tmp_path: Path):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    (note,) = compared(path).ground_truth_notes
    assert reason in note
    with pytest.raises(DatasetError, match=reason):
        Annotations(path)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    (tmp_path / "folder.json").mkdir()
    assert "cannot be read" in compared(tmp_path / "folder.json").ground_truth_notes[0]
    assert "cannot be read" in compared(tmp_path / "nothing.json").ground_truth_notes[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_what_windows_writes_is_read(encoding: str, tmp_path: Path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(plain()), encoding=encoding)
    assert mean_average_precision(compared(path)) == pytest.approx(1)


def test_names_are_equal_however_their_accents_are_coded(tmp_path: Path):
    content = plain()
    content["images"][0]["file_name"] = "Mo\u0308we.jpg"  # as macOS stores it
    path = written(tmp_path, content)
    assert mean_average_precision(compared(path, found=outputs(names=("Möwe.jpg", "b.jpg")))) == pytest.approx(1)


def test_a_detection_in_an_image_without_boxes_counts_as_wrong(tmp_path: Path):
    found = outputs()
    wrong = found[1].model_copy(update={"detections": [found[0].detections[0].model_copy(update={"scores": [0.95]})]})
    assert mean_average_precision(compared(written(tmp_path, plain()), found=[found[0], wrong])) == pytest.approx(0.5)


def test_a_label_that_is_no_category_counts_as_nothing(tmp_path: Path):
    comparison = compared(written(tmp_path, plain()), found=outputs(label=5))
    assert (mean_average_precision(comparison), comparison.ground_truth_notes) == (0, [])


def test_images_that_are_not_annotated_do_not_count_and_are_told(tmp_path: Path):
    path = written(tmp_path, plain())
    comparison = compared(path, found=outputs(names=("a.jpg", "c.jpg", "d.jpg")))
    assert mean_average_precision(comparison) == pytest.approx(1)
    assert comparison.ground_truth_notes == ["instances.json: only 1 of the 3 images are in it, and count"]


def test_the_figure_is_that_of_the_evaluator_on_a_plain_file():
    """Against pycocotools on the file as it is, with boxes a little off."""
    if not TESTDATA.is_dir():
        pytest.skip(f"no test photographs in {TESTDATA}")
    path = TESTDATA / "coco_val2017" / "instances.json"
    content = json.loads(path.read_text())
    found, rows = [], []
    for image in content["images"]:
        boxes, labels = [], []
        for each in content["annotations"]:
            if each["image_id"] == image["id"] and each["id"] % 4:
                x, y, width, height = each["bbox"]
                boxes.append((x + 0.12 * width, y, x + width, y + height))
                labels.append(each["category_id"])
                bbox = [x + 0.12 * width, y, 0.88 * width, height]
                rows.append({"image_id": image["id"], "category_id": each["category_id"], "bbox": bbox, "score": 0.5})
        detections = ModelDetections(model_name=MODEL, boxes=boxes, scores=[0.5] * len(boxes), labels=labels)
        found.append(ImageOutput(image=image["file_name"], sha256=image["file_name"], detections=[detections]))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figure = mean_average_precision(compared(path, 90, found))
    assert 0.3 < figure < 0.9
    assert figure == pytest.approx(float(evaluation.stats[0]), abs=1e-9)
