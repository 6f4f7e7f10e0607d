"""The report, from sweeps made by hand."""

import csv
import html.parser
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from rich.console import Console
from test_folders import TESTDATA

from detbench.errors import DetbenchError
from detbench.quality.outputs import ImageOutput, write_outputs
from detbench.report import read_sweep, write_reports
from detbench.report.photo import save_photo
from detbench.report.rows import COLUMNS, IMPLEMENTATION_COLUMNS, rows_of
from detbench.report.table import implementations_table, markdown_table, terminal_table
from detbench.results import (
    Comparison,
    Environment,
    ErrorFigures,
    Gate,
    ImplementationInfo,
    Latency,
    Load,
    MeasurementWarning,
    Run,
    Settings,
    Sweep,
    Vram,
)
from detbench.schemas import ModelDetections, ModelWeights

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MODELS = ("tf_efficientdet_d0", "tf_efficientdet_d1")
EVIL = "<script>alert(1)</script>"


def load(rps: float, p50_ms: float) -> Load:
    return Load(
        window_s=20,
        requests=round(20 * rps),
        failures=0,
        rps=rps,
        latency=Latency(mean_ms=p50_ms, p50_ms=p50_ms, p90_ms=1.2 * p50_ms, p99_ms=1.5 * p50_ms, max_ms=2 * p50_ms),
        stages_ms={"receive": 1, "wait": 0.1, "decode": 4, "preprocess": 9, "queue": 1}
        | {"forward": 0.7 * p50_ms, "postprocess": 0.2 * p50_ms, "serialise": 1},
        batch_size_mean=1,
        errors={},
        histogram="",
        generator_cpu_percent=7,
    )


def run(implementation: str, users: int, rps: float, vram_mb: float | None = None) -> Run:
    return Run(
        implementation=implementation,
        model_set="mixed",
        users=users,
        status="ok",
        started=START,
        ended=START + timedelta(seconds=25),
        load=load(rps, 1000 * users / rps),
        vram=Vram(allocated_mb=vram_mb, reserved_mb=vram_mb, peak_mb=vram_mb, device_used_mb=vram_mb),
        warnings=[MeasurementWarning(code="few-requests", message="few", remedy="more")] if rps < 1 else [],
    )


def comparison(implementation: str, boxes_mse: float) -> Comparison:
    figures = ErrorFigures(
        boxes_mse=boxes_mse,
        scores_mse=boxes_mse / 1e6,
        pairs_boxes_mse=boxes_mse,
        pairs_scores_mse=boxes_mse / 1e6,
        largest_box_difference_px=boxes_mse,
        largest_score_difference=boxes_mse / 1e6,
        labels_accuracy=float(boxes_mse < 1),
        mean_iou=1,
        pairs=10,
        missed=0,
        spurious=0,
        reference_detections=10,
        candidate_detections=10,
    )
    passed = boxes_mse < 1e-4
    return Comparison(
        implementation=implementation,
        model_set="mixed",
        exact=implementation != "invalid",
        images=2,
        batch_sizes={1: 2},
        per_model=dict.fromkeys(MODELS, figures),
        overall=figures,
        gate=Gate(passed=passed, reasons=[] if passed else ["tf_efficientdet_d0: boxes MSE 9.0e+04 px²"]),
        tolerance=Gate(passed=False) if implementation == "invalid" else None,
    )


def sweep(**changes: object) -> Sweep:
    names = ("baseline", "invalid", "graphs", "fused")
    plain = Sweep(
        started=START,
        ended=START + timedelta(minutes=5),
        settings=Settings(
            implementations=list(names),
            model_set="mixed",
            users=[1, 4],
            duration_s=20,
            warmup_requests=5,
            dataset="sample",
            images=2,
            host="http://127.0.0.1:8000",
        ),
        environment=Environment(
            device="cpu",
            device_name="Some Processor",
            driver=None,
            versions={"torch": "2.15.0", "python": "3.11.7"},
            cpu_count=2,
            torch_threads=2,
            platform="Linux",
            git_revision="0123456789abcdef",
        ),
        weights=[
            ModelWeights(
                model_name=name,
                architecture=name,
                num_classes=90,
                image_size=(512, 512),
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                interpolation="bicubic",
                fill_color=(128, 128, 128),
                configuration={},
                source="random",
                fingerprint="f" * 64,
            )
            for name in MODELS
        ],
        implementations=[ImplementationInfo(name=n, description=n, exact=True, precision="fp32") for n in names],
        runs=[
            run("baseline", 1, 0.7),
            run("baseline", 4, 0.72),
            run("invalid", 1, 90),
            run("invalid", 4, 120),
            run("fused", 1, 2.1),
            Run(
                implementation="graphs",
                model_set="mixed",
                users=1,
                status="failed",
                reason=f"the server ended\n{EVIL}",
            ),
            Run(implementation="graphs", model_set="mixed", users=4, status="not_run", reason="an earlier failure"),
        ],
        comparisons=[comparison("baseline", 0.0), comparison("invalid", 9e4), comparison("fused", 2e-7)],
        problems=[f"graphs, 1 user: the server ended\n{EVIL}"],
    )
    return plain.model_copy(update=changes)


def reported(run_dir: Path, made: Sweep) -> str:
    (run_dir / "results.json").write_text(made.model_dump_json())
    write_reports(run_dir)
    return (run_dir / "report.html").read_text()


class Page(html.parser.HTMLParser):
    """Collects text, ids, and what a page would load from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("data:", "#")):
                self.loaded.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_table_markdown_csv_and_page_have_the_same_rows(tmp_path: Path):
    made = sweep()
    cells = [row.cells() for row in rows_of(made)]
    assert cells[0] == (
        *("baseline", "1", "ok", "0.7", "1.00×", "1,429", "1,714", "2,143", "n/a", "0", "0", "1.0000", "passed"),
    )
    assert cells[4][:5] == ("fused", "1", "ok", "2.1", "3.00×")
    assert cells[5][2:4] == ("failed", "–")
    page = Page(reported(tmp_path, made))
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(terminal_table(made))
    terminal = console.export_text()
    markdown = markdown_table(made)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (tmp_path / "results.md").read_text() == markdown
    for line, row in zip(cells, rows, strict=True):
        assert f"| {' | '.join(line)} |" in markdown
        assert (row["implementation"], row["users"], row["gate"]) == (line[0], line[1], line[-1])
        for cell in line:
            assert cell in terminal
            assert cell in page.text
    assert float(rows[4]["rps"]) == 2.1
    assert float(rows[4]["speedup_vs_baseline"]) == pytest.approx(3.0)
    assert all(column.heading in page.text for column in COLUMNS)


def test_what_loading_took_is_a_table_of_its_own_everywhere(tmp_path: Path):
    infos = [
        ImplementationInfo(name="baseline", description="-", exact=True, precision="fp32", load_s=2.34),
        ImplementationInfo(
            name="fused",
            description="-",
            exact=True,
            precision="fp32",
            load_s=190.6,
            compile_s=180.2,
            kernels_per_request=1234,
        ),
        ImplementationInfo(name="invalid", description="-", exact=False, precision="none", kernels_per_request=0),
    ]
    made = sweep(implementations=infos)
    page = Page(reported(tmp_path, made))
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(implementations_table(made))
    terminal = [line.split() for line in console.export_text().splitlines()]
    markdown = (tmp_path / "results.md").read_text()
    for cells in (
        ("baseline", "reference", "fp32", "2.3", "–", "n/a"),
        ("fused", "exact", "fp32", "191", "180", "1,234"),
        ("invalid", "not exact", "none", "–", "–", "0"),
    ):
        assert f"| {' | '.join(cells)} |" in markdown
        assert " ".join(cells).split() in terminal
        assert all(cell in page.text for cell in cells)
    assert all(column.meaning in page.text for column in IMPLEMENTATION_COLUMNS[1:])


def test_the_answer_names_the_fastest_right_one_and_the_fast_wrong_ones(tmp_path: Path):
    text = Page(reported(tmp_path, sweep())).text
    assert "fused is fastest: 2.1 images per second with 1 user, and it gives the reference's answers" in text
    assert "3.00 times baseline" in text
    assert "invalid does 120, and its answers are wrong" in text


def claims(**exact: bool) -> list[ImplementationInfo]:
    return [ImplementationInfo(name=n, description=n, exact=e, precision="fp32") for n, e in exact.items()]


def test_what_was_not_compared_and_claims_nothing_is_never_the_fastest(detbench, tmp_path: Path, capsys):
    infos = claims(baseline=True, invalid=False, graphs=True, fused=True)
    folder = tmp_path / "outputs" / "a"
    folder.mkdir(parents=True)
    page = Page(reported(folder, sweep(implementations=infos, comparisons=[])))
    said = (
        "fused is fastest: 2.1 images per second with 1 user, and it was not compared with the reference; 3.00 times "
        "baseline. invalid does 120, but does not claim the reference's answers and was not compared: add "
        "--compare-outputs."
    )
    assert detbench("report") == 0
    for text in (page.text, (folder / "results.md").read_text(), capsys.readouterr().out):
        assert said in text
        assert "invalid is fastest" not in text
    assert "invalid (not compared)" in page.text  # the plots' legend


def test_where_only_such_things_were_measured_the_remedy_is_told(tmp_path: Path):
    made = sweep(implementations=claims(invalid=False), comparisons=[], runs=[run("invalid", 1, 97)])
    assert Page(reported(tmp_path, made)).text.count("is fastest") == 0
    assert (
        "Nothing was measured whose answers are right: invalid does 97, but does not claim the reference's answers and "
        "was not compared: add --compare-outputs."
    ) in (tmp_path / "results.md").read_text()


def test_what_claims_nothing_and_passes_the_gate_may_be_the_fastest(tmp_path: Path):
    infos = claims(baseline=True, tuned=False)
    runs = [run("baseline", 1, 1), run("tuned", 1, 5)]
    made = sweep(implementations=infos, runs=runs, comparisons=[comparison("tuned", 1e-6)])
    text = Page(reported(tmp_path, made)).text
    assert "tuned is fastest: 5 images per second with 1 user, and it gives the reference's answers" in text


def test_why_there_is_no_map_is_told_once(tmp_path: Path):
    noted = [c.model_copy(update={"ground_truth_notes": ["no mAP: <labels>"]}) for c in sweep().comparisons]
    page = Page(reported(tmp_path, sweep(comparisons=noted)))
    assert page.text.count("no mAP: <labels>") == 1
    assert (tmp_path / "results.md").read_text().count("- no mAP: <labels>") == 1


def test_random_weights_are_told_at_the_top(tmp_path: Path):
    text = Page(reported(tmp_path, sweep())).text
    assert text.index("Calibrated random weights") < text.index("Results")
    local = [model.model_copy(update={"source": "local"}) for model in sweep().weights]
    text = Page(reported(tmp_path, sweep(weights=local))).text
    assert "Calibrated random weights" not in text
    assert "local ffffffffffff" in text


def test_the_page_needs_no_other_file_and_runs_nothing(tmp_path: Path):
    page = Page(reported(tmp_path, sweep()))
    assert page.loaded == []
    assert "script" not in page.tags
    assert EVIL in page.text  # as text
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 4


def test_without_a_gpu_the_page_says_so_and_with_one_it_shows_vram(tmp_path: Path):
    assert "without a GPU" in Page(reported(tmp_path, sweep())).text
    page = Page(reported(tmp_path, sweep(runs=[run("baseline", 1, 30, vram_mb=812.5)])))
    assert "without a GPU" not in page.text
    assert "peak VRAM (MB)" in page.text
    assert "812" in rows_of(read_sweep(tmp_path))[0].cells()


def test_a_sweep_that_did_not_end_is_reported_as_such(tmp_path: Path):
    assert "did not end" in Page(reported(tmp_path, sweep(ended=None))).text
    nothing = sweep(ended=None, runs=[], comparisons=[], problems=[])
    assert "Nothing was measured" in Page(reported(tmp_path, nothing)).text


def test_the_photo_shows_both_answers(tmp_path: Path):
    Image.effect_noise((640, 480), 60).convert("RGB").save(tmp_path / "photo.jpg")
    found = [
        ModelDetections(model_name=name, boxes=[(10, 10, 200, 100), (90, 5, 80, 4)], scores=[0.9, 0.4], labels=[1, 2])
        for name in MODELS
    ]
    for name in ("reference", "baseline", "invalid"):
        outputs = [ImageOutput(image="a.jpg", sha256="0", detections=found)]
        write_outputs(tmp_path / "detections" / f"{name}.json", outputs)
    page = Page(reported(tmp_path, sweep()))
    assert page.tags.count("img") == 2
    assert "reference | invalid" in page.text


def mean_of_saved(image: Image.Image, source: Path, **options: object) -> tuple[tuple[int, int], np.ndarray]:
    """Size of the report's photo, and the mean of its left and right half."""
    image.save(source, **options)
    save_photo(source, source.with_name("photo.jpg"))
    with Image.open(source.with_name("photo.jpg")) as saved:
        pixels = np.asarray(saved)
    half = pixels.shape[1] // 2
    return saved.size, np.array([pixels[:, :half].mean(), pixels[:, half:].mean()])


def test_a_grey_photo_of_16_bits_is_its_upper_byte(tmp_path: Path):
    grey = np.repeat([[64 * 257] * 16 + [192 * 257] * 16], 32, axis=0).astype(np.uint16)
    size, means = mean_of_saved(Image.fromarray(grey), tmp_path / "grey.png")
    assert size == (32, 32)
    assert means == pytest.approx([64, 192], abs=2)


@pytest.mark.parametrize(("orientation", "size", "means"), [(1, (32, 16), [0, 255]), (3, (32, 16), [255, 0])])
def test_the_photo_is_upright(orientation: int, size: tuple[int, int], means: list[float], tmp_path: Path):
    pixels = np.repeat([[0] * 16 + [255] * 16], 16, axis=0).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    assert mean_of_saved(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)[0] == size
    assert mean_of_saved(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)[1] == pytest.approx(means, abs=2)
    exif[ExifTags.Base.Orientation] = 6
    assert mean_of_saved(Image.fromarray(pixels), tmp_path / "a.jpg", exif=exif)[0] == (16, 32)


@pytest.mark.parametrize("exif", [b"", b"garbage", b"Exif\0\0garbage!", b"Exif\0\0MM\0*\xff\xff\xff\xff"])
def test_a_photo_with_odd_metadata_is_shown(exif: bytes, tmp_path: Path):
    white = Image.new("RGB", (32, 16), "white")
    assert mean_of_saved(white, tmp_path / "a.jpg", exif=exif)[0] == (32, 16)
    assert mean_of_saved(white, tmp_path / "a.png", exif=exif)[0] == (32, 16)


def test_a_photo_that_cannot_be_shown_costs_a_warning_and_no_report(tmp_path: Path, caplog):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    save_photo(tmp_path / "cut.jpg", tmp_path / "photo.jpg")
    assert not (tmp_path / "photo.jpg").exists()
    assert "the report is without a photo: " in caplog.text
    assert Page(reported(tmp_path, sweep())).tags.count("img") == 0


def test_no_odd_picture_ends_a_report_and_none_is_white(tmp_path: Path):
    odd = TESTDATA / "odd"
    if not odd.is_dir():
        pytest.skip(f"no odd pictures in {odd}")
    for picture in (path for path in odd.iterdir() if path.is_file()):
        save_photo(picture, tmp_path / "photo.jpg")
    for name in ("grey16.png", "exif6_make_as_rational.jpg", "png_exif_garbage.png"):
        save_photo(odd / name, tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert 100 < np.asarray(saved).mean() < 140
            assert saved.size == ((160, 240) if name.startswith("exif6") else (240, 160))


@pytest.mark.parametrize("content", [None, "", "{}", '{"schema_version": 99}'])
def test_results_that_cannot_be_read_are_told(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(DetbenchError, match=r"results\.json"):
        write_reports(tmp_path)


def test_the_command_takes_the_newest_run(detbench, tmp_path: Path, capsys):
    assert detbench("report") == 2
    assert "there is no run" in capsys.readouterr().err
    folder = tmp_path / "outputs" / "a"
    folder.mkdir(parents=True)
    reported(folder, sweep())
    assert detbench("report") == 0
    assert str(folder / "report.html") in capsys.readouterr().out.replace("\n", "")
