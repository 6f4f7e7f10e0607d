"""Output error in every report: per model, with mAP where the images are annotated, and what is only near."""

import csv
import io
import json
from pathlib import Path

import pytest
from made_reports import MODELS, Page, comparison, reported, run, sweep
from rich.console import Console
from stub_server import BOX, StubServer, entry

from detbench.report.output_error import output_error_columns, output_error_rows
from detbench.report.table import output_error_table
from detbench.results.quality import Comparison, Gate, GroundTruth
from detbench.results.sweep import ImplementationInfo


def near(**changes: object) -> Comparison:
    """Not the reference's answers, not claimed to be, and near enough; its first model has a mAP."""
    truth = {
        MODELS[0]: GroundTruth(
            map=0.3214, ap50=0.5, ap75=0.3, map_baseline=0.3251, difference=-0.0037, low=-0.0081, high=0.0012
        )
    }
    plain = {"exact": False, "tolerance": Gate(passed=True), "ground_truth": truth}
    return comparison("near", 40.0).model_copy(update=plain | changes)


def test_map_is_in_every_report_where_the_images_are_annotated(tmp_path: Path):
    made = sweep(comparisons=[comparison("baseline", 0.0), near()], runs=[run("baseline", 1, 1), run("near", 1, 3)])
    page = Page(reported(tmp_path, made))
    markdown = (tmp_path / "results.md").read_text()
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(output_error_table(made.comparisons))
    terminal = [line.split() for line in console.export_text().splitlines()]
    rows = output_error_rows(made.comparisons)
    assert [row[-4:] for row in rows[3:]] == [
        ("0.3214", "-0.0037 [-0.0081, +0.0012]", "", ""),
        ("n/a", "n/a", "", ""),
        ("", "", "not exact", "tolerated"),
    ]
    for cells in rows:
        assert f"| {' | '.join(cells)} |" in markdown
        assert " ".join(cells).split() in terminal
    for column in output_error_columns(made.comparisons):
        assert column.heading in page.text
    assert "-0.0037" in page.text
    with (tmp_path / "results.csv").open() as file:
        _, of_near = csv.DictReader(file)
    assert (of_near["map_tf_efficientdet_d0"], of_near["map_difference_tf_efficientdet_d0"]) == ("0.3214", "-0.0037")
    assert (of_near["map_tf_efficientdet_d1"], of_near["gate"]) == ("", "tolerated")


def test_without_annotations_there_is_no_column_of_map(tmp_path: Path):
    headings = [column.heading for column in output_error_columns(sweep().comparisons)]
    assert "mAP" not in headings
    assert "ΔmAP" not in Page(reported(tmp_path, sweep())).text


def test_what_is_near_is_neither_the_fastest_nor_called_wrong(tmp_path: Path):
    infos = [
        ImplementationInfo(name=name, description=name, exact=exact, precision="fp32")
        for name, exact in (("baseline", True), ("near", False))
    ]
    runs = [run("baseline", 1, 1), run("near", 1, 3)]
    made = sweep(comparisons=[comparison("baseline", 0.0), near()], runs=runs, implementations=infos)
    text = Page(reported(tmp_path, made)).text
    assert "baseline serves the most" in text
    assert "near does 3, and its answers are near the reference's, not the same" in text
    assert "near (other answers)" in text  # the plots' legend
    assert "Why near has failed" not in text


def test_what_is_too_far_has_failed_with_its_reasons(tmp_path: Path):
    far = near(tolerance=Gate(passed=False, reasons=["tf_efficientdet_d0: mAP 0.3 is more than 0.01 below"]))
    text = Page(reported(tmp_path, sweep(comparisons=[far]))).text
    assert "Why near has failed" in text
    assert "mAP 0.3 is more than 0.01 below" in text


@pytest.mark.parametrize("annotated", [True, False])
def test_compare_prints_map_where_there_are_annotations(detbench, sample, tmp_path: Path, capsys, annotated: bool):
    for photo in sample.photos:
        (tmp_path / photo.name).write_bytes(photo.read())
    if annotated:
        x1, y1, x2, y2 = BOX
        categories = [{"id": each, "name": str(each)} for each in range(1, 91)]
        boxes = [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1, "iscrowd": 0}
            for n in range(len(sample.photos))
        ]
        images = [{"id": number, "file_name": photo.name} for number, photo in enumerate(sample.photos)]
        truth = {"images": images, "annotations": boxes, "categories": categories}
        (tmp_path / "_annotations.coco.json").write_text(json.dumps(truth))
    with StubServer(entry("baseline"), entry("moved", exact=False)) as stub:
        stub.boxes = {"moved": [BOX[0] + 40, *BOX[1:]]}
        where = ("--host", stub.host, "--dataset", tmp_path)
        assert detbench("reference", *where) == 0
        capsys.readouterr()
        assert detbench("compare", *where) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    of_model = next(line for line in lines if line[:1] == ["moved"])
    assert (of_model[-4:] == ["0.3000", "-0.7000", "[-0.7000,", "-0.7000]"]) == annotated
