"""The report, from sweeps made by hand."""

import csv
import io
from pathlib import Path

import pytest
from made_reports import EVIL, Page, comparison, memory, reported, run, sweep
from rich.console import Console

from detbench.errors import DetbenchError
from detbench.report import read_sweep, write_reports
from detbench.report.rows import IMPLEMENTATION_COLUMNS, columns_of, rows_of
from detbench.report.table import implementations_table, markdown_table, terminal_table
from detbench.results.sweep import ImplementationInfo


def test_table_markdown_csv_and_page_have_the_same_rows(tmp_path: Path):
    made = sweep()
    columns = columns_of(made)
    cells = [row.cells(columns) for row in rows_of(made)]
    assert cells[0] == (
        *(
            "baseline",
            "1 user",
            "valid",
            "0.7",
            "1.00×",
            "1,429",
            "1,714",
            "2,143",
            "1,234",
            "0",
            "0",
            "1.0000",
            "passed",
        ),
    )
    assert cells[4][:5] == ("fastest", "1 user", "valid", "2.1", "3.00×")
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
        assert (row["implementation"], row["load"], row["gate"]) == (line[0], line[1], line[-1])
        for cell in line:
            assert cell in terminal
            assert cell in page.text
    assert float(rows[4]["rps"]) == 2.1
    assert float(rows[4]["speedup_vs_baseline"]) == pytest.approx(3.0)
    assert all(column.heading in page.text for column in columns)


def test_what_loading_took_is_a_table_of_its_own_everywhere(tmp_path: Path):
    infos = [
        ImplementationInfo(name="baseline", description="-", exact=True, precision="fp32", load_s=2.34),
        ImplementationInfo(
            name="fastest",
            description="-",
            exact=True,
            precision="fp32",
            load_s=12.6,
            first_load_s=190.6,
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
        ("baseline", "reference", "fp32", "2.3", "–", "–", "n/a", "345"),
        ("fastest", "exact", "fp32", "12.6", "191", "180", "1,234", "345"),
        ("invalid", "not exact", "none", "–", "–", "–", "0", "345"),
    ):
        assert f"| {' | '.join(cells)} |" in markdown
        assert " ".join(cells).split() in terminal
        assert all(cell in page.text for cell in cells)
    assert all(column.meaning in page.text for column in IMPLEMENTATION_COLUMNS[1:])


def test_the_answer_names_the_fastest_right_one_and_the_fast_wrong_ones(tmp_path: Path):
    made = sweep(
        runs=[*sweep().runs, run("wrong", 1, 70)], comparisons=[*sweep().comparisons, comparison("wrong", 9e4)]
    )
    text = Page(reported(tmp_path, made)).text
    assert (
        "fastest serves the most: 2.1 images per second with 1 user, 3.00 times baseline, with 1,234 MB at its peak, "
        "345 MB above an empty server. It gives the reference's answers. wrong does 70, and its answers are wrong."
    ) in text


def claims(**exact: bool) -> list[ImplementationInfo]:
    return [ImplementationInfo(name=n, description=n, exact=e, precision="fp32") for n, e in exact.items()]


def test_what_was_not_compared_and_claims_nothing_is_never_the_fastest(detbench, tmp_path: Path, capsys):
    infos = claims(baseline=True, hasty=False, graphs=True, fastest=True)
    folder = tmp_path / "outputs" / "a"
    folder.mkdir(parents=True)
    runs = [*sweep().runs, run("hasty", 1, 120)]
    page = Page(reported(folder, sweep(implementations=infos, comparisons=[], runs=runs)))
    said = (
        "fastest serves the most: 2.1 images per second with 1 user, 3.00 times baseline, with 1,234 MB at its peak, "
        "345 MB above an empty server. It was not compared with the reference. hasty does 120, but does not claim "
        "the reference's answers and was not compared: add --compare-outputs."
    )
    assert detbench("report") == 0
    for text in (page.text, (folder / "results.md").read_text(), capsys.readouterr().out):
        assert said in text
        assert "hasty serves the most" not in text
    assert "hasty (not compared)" in page.text  # the plots' legend


def test_where_only_such_things_were_measured_the_remedy_is_told(tmp_path: Path):
    made = sweep(implementations=claims(hasty=False), comparisons=[], runs=[run("hasty", 1, 97)])
    assert Page(reported(tmp_path, made)).text.count("serves the most") == 0
    assert (
        "Nothing was measured whose answers are right: hasty does 97, but does not claim the reference's answers and "
        "was not compared: add --compare-outputs."
    ) in (tmp_path / "results.md").read_text()


def test_what_claims_nothing_and_passes_the_gate_may_be_the_fastest(tmp_path: Path):
    infos = claims(baseline=True, tuned=False)
    runs = [run("baseline", 1, 1), run("tuned", 1, 5)]
    made = sweep(implementations=infos, runs=runs, comparisons=[comparison("tuned", 1e-6)])
    text = Page(reported(tmp_path, made)).text
    assert "tuned serves the most: 5 images per second with 1 user, 5.00 times baseline" in text


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
    folder = tmp_path / "outputs" / "run"  # with no other run beside it
    folder.mkdir(parents=True)
    page = Page(reported(folder, sweep()))
    assert page.loaded == []
    assert "script" not in page.tags
    assert EVIL in page.text  # as text
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 6


def test_the_memory_peak_is_the_processs_wherever_it_runs(tmp_path: Path):
    gpu = memory(process_mb=800, process_peak_mb=812.5, empty_mb=400, allocated_peak_mb=300, reserved_peak_mb=500)
    silent = memory(reserved_mb=480, reserved_peak_mb=500, empty_mb=0, allocated_peak_mb=300)
    runs = [run("cpu", 1, 30), run("gpu", 1, 30, gpu), run("silent-nvml", 1, 30, silent)]
    page = Page(reported(tmp_path, sweep(runs=runs)))
    place = [column.heading for column in columns_of(sweep())].index("memory peak (MB)")
    assert [row.cells(columns_of(sweep()))[place] for row in rows_of(read_sweep(tmp_path))] == ["1,234", "812", "500"]
    assert "memory peak (MB); grey: what the empty server takes" in page.text
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["memory_peak_mb"] for row in rows] == ["1234.4", "812.5", "500.0"]
    assert (rows[1]["memory_allocated_peak_mb"], rows[1]["memory_resident_peak_mb"]) == ("300.0", "1234.4")


def test_of_several_runs_the_highest_peak_counts_above_the_empty_server(tmp_path: Path):
    runs = [run("x", 1, 30, memory(resident_peak_mb=1000)), run("x", 4, 30, memory(resident_peak_mb=1500))]
    reported(tmp_path, sweep(runs=runs, implementations=claims(x=True)))
    assert "| x | exact | fp32 | – | – | – | n/a | 611 |" in (tmp_path / "results.md").read_text()


def test_a_sweep_that_did_not_end_is_reported_as_such(tmp_path: Path):
    assert "did not end" in Page(reported(tmp_path, sweep(ended=None))).text
    nothing = sweep(ended=None, runs=[], comparisons=[], problems=[])
    assert "Nothing was measured" in Page(reported(tmp_path, nothing)).text


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
