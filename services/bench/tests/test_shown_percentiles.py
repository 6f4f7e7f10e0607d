"""Percentiles of random runs in every artefact: in order, equal to the last digit that is shown, infinite where so."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from made_reports import Page, comparison, reported, run, sweep
from prometheus_client.parser import text_string_to_metric_families
from pushgateway_stub import StubPushgateway
from rich.console import Console
from test_recorder import ANSWER

from detbench.load.figures import load_of
from detbench.load.recorder import Recorder, Request
from detbench.measure.pushgateway import push_runs
from detbench.report import read_sweep
from detbench.report.rows import columns_of, duration, rows_of
from detbench.report.table import terminal_table
from detbench.results.loads import ClosedLoop, Load, OpenLoop
from detbench.results.sweep import Run

NAMES = ("p50", "p90", "p99", "p99.9")
OPEN = OpenLoop(schedule="20 requests/s, Poisson", rate=20.0, max_in_flight=256)


def random_load(random: np.random.Generator, offered: ClosedLoop | OpenLoop) -> Load:
    """From one request to some thousand, whose latencies spread over up to five decades, some of them failed."""
    recorder = Recorder()
    recorder.open(0.0, 10.0)
    failing = random.choice([0.0, 0.0, 0.005, 0.2])
    for took_s in np.exp(random.normal(-3, random.uniform(0, 2.5), int(10 ** random.uniform(0, 3.9)))):
        sent_s = random.uniform(0, 9)
        late_s = random.exponential(0.01) if isinstance(offered, OpenLoop) else 0
        request = Request(0, sent_s, sent_s - late_s, photo="")
        recorder.sending(request)
        failed = random.random() < failing
        request.answer = None if failed else ANSWER
        error = ValueError("HTTP 500") if failed else None
        recorder.on_request(1e3 * took_s, error, {"request": request})
    request = Request(0, 5.0, 5.0, ANSWER, photo="")
    recorder.on_request(50.0, None, {"request": request})
    return load_of(recorder.tally(5.0, 30.0), offered)


def number(text: str) -> float:
    text = text.strip("()").replace(",", "")
    return math.inf if text == "∞" else float(text)


def in_order(values: list[float]) -> bool:
    return values == sorted(values)


@pytest.mark.parametrize("seed", range(6))
def test_percentiles_are_in_order_and_equal_in_every_artefact(seed: int, tmp_path: Path):
    random = np.random.default_rng(seed)
    offered: ClosedLoop | OpenLoop = OPEN if seed % 2 else ClosedLoop(users=4)
    load = random_load(random, offered)
    made_run: Run = run("fastest", 4, 1).model_copy(update={"load": load, "offered": offered})
    made = sweep(runs=[made_run], comparisons=[comparison("fastest", 0.0)])
    page = Page(reported(tmp_path, made))
    assert load.latency is not None
    shown = {name: duration(each.value_ms) for name, each in load.latency.percentiles().items()}
    certain = {name: each.certified for name, each in load.latency.percentiles().items()}

    # JSON
    times = json.loads((tmp_path / "results.json").read_text())["runs"][0]["load"]["latency"]
    values = [float(times[name.replace(".", "_")]["value_ms"]) for name in NAMES]
    assert in_order([*values, float(times["max_ms"])])
    assert [duration(value) for value in values] == list(shown.values())
    assert read_sweep(tmp_path) == made

    # CSV
    (row,) = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    cells = [row[f"{name.replace('.', '_')}_ms"] for name in NAMES]
    assert in_order([number(cell) for cell in (*cells, row["max_ms"])])
    assert [duration(number(cell)) for cell in cells] == list(shown.values())

    # Table, page and Markdown
    columns = columns_of(made)
    texts = dict(zip([column.heading for column in columns], rows_of(made)[0].cells(columns), strict=True))
    assert ("p99.9 (ms)" in texts) == certain["p99.9"]
    console = Console(width=300, file=io.StringIO(), record=True)
    console.print(terminal_table(made))
    terminal, markdown = console.export_text(), (tmp_path / "results.md").read_text()
    for name in NAMES[: 4 if certain["p99.9"] else 3]:
        text = texts[f"{name} (ms)"]
        assert text == (shown[name] if certain[name] else f"({shown[name]})")
        assert all(text in artefact for artefact in (terminal, markdown, page.text))
    assert ("service p50 (ms)" in texts) == isinstance(offered, OpenLoop)
    uncertain = "uncertain, because the run had fewer requests than the percentile needs"
    for artefact in (markdown, page.text):
        assert (uncertain in artefact) == (not certain["p99"])

    # Pushgateway
    with StubPushgateway() as gateway:
        push_runs([made_run], url=gateway.url)
        families = text_string_to_metric_families(httpx.get(f"{gateway.url}/metrics", trust_env=False).text)
        pushed = {
            sample.labels["quantile"]: sample.value
            for family in families
            for sample in family.samples
            if sample.name == "detbench_run_latency_seconds"
        }
    assert [duration(1e3 * pushed[q]) for q in ("0.5", "0.9", "0.99", "0.999")] == list(shown.values())


def test_the_sentence_of_an_open_loop_builds_on_no_uncertain_percentile(tmp_path: Path):
    slow, fast = (
        run(name, 1, rps).model_copy(update={"offered": OPEN}) for name, rps in (("baseline", 2), ("fastest", 9))
    )
    compared = [comparison(name, 0.0) for name in ("baseline", "fastest")]
    text = Page(reported(tmp_path, sweep(runs=[slow, fast], comparisons=compared))).text
    assert "fastest answers soonest at 20 requests/s, Poisson: p99 167 ms, with 1,234 MB at its peak" in text

    def doubted(each: Run, *names: str) -> Run:
        assert each.load is not None
        assert each.load.latency is not None
        latency = each.load.latency
        changes = {name: replace(getattr(latency, name), certified=False) for name in names}
        load = each.load.model_copy(update={"latency": latency.model_copy(update=changes)})
        return each.model_copy(update={"load": load})

    text = Page(reported(tmp_path, sweep(runs=[doubted(slow, "p99"), fast], comparisons=compared))).text
    assert "fastest answers soonest at 20 requests/s, Poisson: p90 133 ms" in text
    none = [doubted(slow, "p99", "p90", "p50"), fast]
    text = Page(reported(tmp_path, sweep(runs=none, comparisons=compared))).text
    assert (
        "At 20 requests/s, Poisson no percentile is certain: too few requests. Raise --duration, or give --until p99."
        in text
    )
