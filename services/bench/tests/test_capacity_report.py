"""The report on capacities, from searches made by hand."""

import csv
import io
from pathlib import Path

import pytest
from made_reports import EVIL, START, Page, load, memory, sweep, times
from rich.console import Console

from detbench.report import read_capacities, write_capacity_reports
from detbench.report.capacity import answer_of, columns_of, notes_of, rows_of, terminal_table
from detbench.results.capacity import Capacities, Capacity, CapacitySettings, Ending, Outcome, Probe
from detbench.results.loads import OpenLoop
from detbench.results.sweep import ImplementationInfo, Run
from detbench.slo import objective

SLO = [objective("p99=200ms"), objective("errors=0.1%")]


def probe(
    rate: float, outcome: Outcome, reason: str = "", confirms: bool = False, p50_ms: float | None = 60.0, seed: int = 1
) -> Probe:
    """With a p99 of half as much again as p50; None: it was ended early."""
    offered = OpenLoop(schedule=f"{rate:g} requests/s, Poisson", rate=rate, seed=seed, max_in_flight=256)
    made = (
        None if p50_ms is None else load(rate, p50_ms).model_copy(update={"latency": times(p50_ms, round(20 * rate))})
    )
    return Probe(
        run=Run(
            implementation="any",
            model_set="mixed",
            offered=offered,
            verdict="failed" if made is None else "valid",
            started=START,
            load=made,
            memory=memory() if made else None,
        ),
        duration_s=20.0,
        confirms=confirms,
        outcome=outcome,
        reason=reason,
        took_s=24.0,
    )


def capacity(
    name: str, probes: list[Probe], passed: int | None, failed: int | None, ended_by: Ending | None, exact: bool = True
) -> Capacity:
    return Capacity(
        implementation=ImplementationInfo(name=name, description=f"what {name} does", exact=exact, precision="fp32"),
        probes=probes,
        last_passed=passed,
        first_failed=failed,
        ended_by=ended_by,
    )


BASELINE = capacity(
    "baseline",
    [probe(11.0, "passed", confirms=True), probe(11.3, "failed", "p99 240 ms", True, 160.0)],
    *(0, 1),
    "precision",
)
FASTEST = capacity(
    "fastest",
    [
        *(probe(40.0, "failed", f"p99 ≤ 200 ms out of reach after 1.5 s: {EVIL}", p50_ms=None), probe(34.2, "passed")),
        *(probe(34.2, "passed", confirms=True), probe(35.1, "failed", "p99 312 ms", True, 208.0)),
    ],
    *(2, 3),
    "precision",
)


def capacities(*found: Capacity, **changes: object) -> Capacities:
    plain = sweep(runs=[])
    return Capacities(
        started=START,
        ended=START,
        settings=CapacitySettings(
            implementations=[each.implementation.name for each in found],
            model_set="mixed",
            slo=SLO,
            arrivals=None,
            burstiness=None,
            seed=0,
            max_in_flight=256,
            max_rate=None,
            max_duration_s=300.0,
            precision=0.03,
            processes=1,
            warmup_requests=5,
            dataset="sample",
            images=2,
            host=None,
            server={},
        ),
        environment=plain.environment,
        weights=plain.weights,
        capacities=list(found),
    ).model_copy(update=changes)


def test_the_sentence_names_both_ends_and_the_ratio_to_baseline():
    assert answer_of(capacities(BASELINE, FASTEST)) == (
        "fastest holds p99 ≤ 200 ms and errors ≤ 0.1 % up to 34.2 requests/s (passed at 34.2, failed at 35.1: "
        "p99 312 ms); 3.11 times baseline (11.0)."
    )


def test_where_the_time_was_too_short_the_ratio_is_an_interval():
    rough = capacity(
        "baseline", [probe(8.0, "passed"), probe(16.0, "failed", "p99 900 ms", p50_ms=600.0)], 0, 1, "time"
    )
    made = capacities(rough, FASTEST)
    # 34.2 / 16 to 35.1 / 8
    assert answer_of(made).endswith("p99 312 ms); 2.14 to 4.39 times baseline (8.00).")
    assert rows_of(made)[1][3] == "4.28× [2.14, 4.39]"
    assert rows_of(made)[0][4] == "no"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            capacity("fastest", [probe(90.0, "passed", confirms=True)], 0, None, "max-rate"),
            "up to 90.0 requests/s at least (passed at 90.0, the highest rate tried)",
        ),
        (
            capacity(
                "fastest", [probe(30.0, "passed"), probe(31.0, "unusable", "p99 ∞, but the generator")], 0, 1, "time"
            ),
            "up to 30.0 requests/s at least (passed at 30.0, not confirmed; at 31.0 not the server was the limit: p99",
        ),
        (
            capacity("fastest", [probe(0.5, "failed", "p99 900 ms", True, 600.0)], None, 0, "none"),
            "fastest holds p99 ≤ 200 ms and errors ≤ 0.1 % at no rate that was tried (failed at 0.500: p99 900 ms).",
        ),
        (capacity("fastest", [], None, None, "failure"), "fastest was not measured."),
        (capacity("fastest", [], None, None, None), "No capacity has been found yet."),
        (
            capacity("invalid", [probe(500.0, "passed", confirms=True)], 0, None, "time", exact=False),
            "invalid does 500, but does not claim the reference's answers.",
        ),
    ],
)
def test_what_is_no_capacity_or_a_lower_bound_is_called_so(found: Capacity, said: str):
    assert said in answer_of(capacities(found))


def test_table_markdown_csv_and_page_have_the_same_rows(tmp_path: Path):
    made = capacities(BASELINE, FASTEST, problems=[f"folded was not measured\n{EVIL}"])
    (tmp_path / "capacity.json").write_text(made.model_dump_json())
    assert write_capacity_reports(tmp_path) == read_capacities(tmp_path) == made
    rows = rows_of(made)
    assert rows[0] == (*("baseline", "11.0", "11.3", "1.00×", "220", "90 ms", "0 %", "1,234", "2", "48", "within 3 %"),)
    # 34.2 / 11.3 to 35.1 / 11: what both intervals leave open.
    assert rows[1][:5] == ("fastest", "34.2", "35.1", "3.11× [3.03, 3.19]", "684")
    page = Page((tmp_path / "capacity.html").read_text())
    console = Console(width=250, file=io.StringIO(), record=True)
    console.print(terminal_table(made))
    terminal, markdown = console.export_text(), (tmp_path / "capacity.md").read_text()
    for row in rows:
        assert f"| {' | '.join(row)} |" in markdown
        for cell in row:
            assert cell in terminal
            assert cell in page.text
    assert all(column.heading in page.text for column in columns_of(made))
    assert all(note in page.text for note in notes_of(made))
    assert EVIL in page.text
    assert "script" not in page.tags
    assert page.loaded == []
    assert len(set(page.ids)) == len(page.ids)
    with (tmp_path / "capacity.csv").open() as file:
        probes = list(csv.DictReader(file))
    assert [(each["implementation"], each["probe"], each["rate"], each["outcome"]) for each in probes] == [
        *(("baseline", "1", "11.0", "passed"), ("baseline", "2", "11.3", "failed"), ("fastest", "1", "40.0", "failed")),
        *(("fastest", "2", "34.2", "passed"), ("fastest", "3", "34.2", "passed"), ("fastest", "4", "35.1", "failed")),
    ]
    assert [each["p99_ms"] for each in probes[:3]] == ["90.0", "240.0", ""]


def in_replicas(found: Capacity, replicas: int, factor: float) -> Capacity:
    """The same search at a cluster that takes so many times as much."""
    probes = [
        each.model_copy(update={"run": each.run.model_copy(update={"offered": times_as_much(each, factor)})})
        for each in found.probes
    ]
    return found.model_copy(update={"replicas": replicas, "probes": probes})


def times_as_much(found: Probe, factor: float) -> OpenLoop:
    return found.run.offered.model_copy(update={"rate": factor * found.rate})


def test_each_number_of_replicas_is_compared_with_one(tmp_path: Path):
    found = [in_replicas(FASTEST, replicas, factor) for replicas, factor in ((1, 1.0), (2, 1.92), (4, 3.0))]
    made = capacities(*found, in_replicas(BASELINE, 4, 3.2))
    made = made.model_copy(update={"settings": made.settings.model_copy(update={"replicas": [1, 2, 4]})})
    headings = [column.heading for column in columns_of(made)]
    shown = ("implementation", "replicas", "vs baseline", "vs 1 replica", "efficiency")
    assert [[cells[headings.index(name)] for name in shown] for cells in rows_of(made)] == [
        ["fastest", "1", "–", "1.00×", "100 %"],
        ["fastest", "2", "–", "1.92× [1.87, 1.97]", "96 % [94, 99]"],
        ["fastest", "4", "2.91× [2.84, 2.99]", "3.00× [2.92, 3.08]", "75 % [73, 77]"],
        ["baseline", "4", "1.00×", "n/a", "n/a"],
    ]
    assert answer_of(made).startswith("fastest with 4 replicas holds p99 ≤ 200 ms and errors ≤ 0.1 % up to 103 req")
    assert answer_of(made).endswith("; 2.91 times baseline (35.2).")
    (tmp_path / "capacity.json").write_text(made.model_dump_json())
    write_capacity_reports(tmp_path)
    text = Page((tmp_path / "capacity.html").read_text()).text
    assert "new clusters for each implementation, of 1, 2, 4 replicas" in text
    assert "fastest with 2 replicas: 65.7/s" in text
    with (tmp_path / "capacity.csv").open() as file:
        assert {row["replicas"] for row in csv.DictReader(file)} == {"1", "2", "4"}


def test_of_a_cluster_that_ran_there_is_nothing_to_compare_with():
    made = capacities(in_replicas(FASTEST, 3, 1.0))
    settings = made.settings.model_copy(update={"replicas": [3], "host": "http://127.0.0.1:8000"})
    made = made.model_copy(update={"settings": settings})
    headings = [column.heading for column in columns_of(made)]
    assert "replicas" in headings
    assert "efficiency" not in headings
    assert rows_of(made)[0][:3] == ("fastest", "3", "34.2")


def test_the_page_of_a_search_that_has_only_begun_can_be_made(tmp_path: Path):
    made = capacities(capacity("baseline", [], None, None, None), ended=None)
    (tmp_path / "capacity.json").write_text(made.model_dump_json())
    write_capacity_reports(tmp_path)
    page = Page((tmp_path / "capacity.html").read_text())
    assert "This search did not end" in page.text
    assert "No probe has ended yet." in page.text
    assert (tmp_path / "capacity.csv").read_text() == ""
