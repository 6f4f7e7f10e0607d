"""Load scripted servers in an open loop and by stock Locust, beside what the schedule implies: a table in Markdown.

    .venv/bin/python services/bench/tests/what_a_closed_loop_hides.py

It is the table of docs/measuring.md, "What a closed loop does not show". It takes eight minutes, in which nothing else
should run.
"""

import contextlib
import csv
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from scripted_server import Script, ScriptedServer, implied

from detbench.load.schedules import schedule_of
from detbench.measure.generators import LoadRequest, run_load
from detbench.results.loads import OpenLoop
from detbench.statistics.percentiles import percentiles
from detbench.verdict import doubts_of

STOCK = """
from locust import FastHttpUser, constant, task

class User(FastHttpUser):
    wait_time = constant(0)
    network_timeout = 600.0

    @task
    def ask(self):
        with open({photo!r}, "rb") as photo:
            headers = {{"Content-Type": "image/png"}}
            self.client.post("/infer/scripted?model_set=single", data=photo.read(), headers=headers)
"""


@dataclass(frozen=True)
class Case:
    """A server, what it is asked for, and the users of stock Locust beside it."""

    title: str
    script: Script
    workers: int | None
    rate: float
    duration_s: float
    users: int


def constant(seconds: float) -> Script:
    """Every request takes as long."""
    return lambda number, since_s: (seconds, "good")


def bimodal(number: int, since_s: float) -> tuple[float, str]:
    """One of 20 takes 250 ms, the others 20."""
    return (0.25 if number % 20 == 7 else 0.02), "good"


def stalling(number: int, since_s: float) -> tuple[float, str]:
    """From the 8th second on, and so on every ten, nothing is answered for two."""
    within_s = since_s % 10
    return 0.02 + (10 - within_s if within_s >= 8 else 0.0), "good"


CASES = (
    Case("20 ms", constant(0.02), None, 100, 70, 2),
    Case("20 ms, and 250 for one of 20", bimodal, None, 100, 70, 3),
    Case("20 ms, and nothing for 2 s every 10 s", stalling, None, 100, 70, 2),
    Case("500 ms, one at a time", constant(0.5), 1, 10, 20, 1),
)


def main() -> None:
    """Measure every case and print its rows as they are known."""
    print("| server | | requests | p50 | p90 | p99 | p99.9 |\n|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        photos = Path(name) / "photos"
        photos.mkdir()
        Image.new("RGB", (16, 16)).save(photos / "small.png")
        Path("stock.py").write_text(STOCK.format(photo=str(photos / "small.png")))
        for case in CASES:
            measure(case, photos)


def measure(case: Case, photos: Path) -> None:
    """Print the rows of one case, and on stderr what is to be doubted about it."""
    schedule = schedule_of(rate=case.rate, seed=1)
    arrivals_s = schedule.between(0, case.duration_s).tolist()
    by_calculation = percentiles([1e3 * latency_s for latency_s in implied(arrivals_s, case.script, case.workers)])
    row(case.title, f"by calculation, {case.rate:g}/s", "", (each.value_ms for each in by_calculation))
    offered = OpenLoop(schedule=str(schedule), rate=case.rate, seed=1, max_in_flight=512)
    with serving(case) as (host, lag_s):
        request = LoadRequest(host, "scripted", "single", str(photos), photos, 1, offered, case.duration_s)
        load = run_load(request, lambda message: None)
        lag_ms = 1e3 * lag_s()
    assert load.latency is not None
    found = [each.value_ms for each in load.latency.percentiles().values()]
    row("", f"open loop, {case.rate:g}/s", f"{load.answered:,}", found)
    doubts = "; ".join(doubt.message for doubt in doubts_of(load, offered))
    print(f"{case.title}: the server was late by up to {lag_ms:.1f} ms; {load.lateness}; {doubts}", file=sys.stderr)
    with serving(case) as (host, _):
        count, stock = stock_locust(host, case)
    row("", f"stock Locust, {case.users} users", f"{count:,}", stock)


@contextlib.contextmanager
def serving(case: Case) -> Iterator[tuple[str, Callable[[], float]]]:
    """The server of a case in a process of its own, on a core of its own: its address, and by how much it was late."""
    here, there = multiprocessing.Pipe()

    def serve() -> None:
        with ScriptedServer(case.script, case.workers, busy=True) as server:
            there.send(server.host)
            there.recv()
            there.send(server.lag_s)

    process = multiprocessing.get_context("fork").Process(target=serve, daemon=True)
    process.start()

    def lag_s() -> float:
        here.send("end")
        return here.recv()

    yield here.recv(), lag_s
    process.terminate()
    process.join()


def stock_locust(host: str, case: Case) -> tuple[int, list[float]]:
    """Requests and percentiles in ms that Locust itself reports."""
    command = [sys.executable, "-m", "locust", "-f", "stock.py", "--headless", "--only-summary", "--csv", "stock"]
    users = ["-u", str(case.users), "-r", str(case.users), "-t", f"{case.duration_s:g}s", "--host", host]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    subprocess.run([*command, *users], env=environment, check=False, capture_output=True)
    with Path("stock_stats.csv").open() as file:
        total = next(csv.DictReader(file))
    return int(total["Request Count"]), [float(total[name]) for name in ("50%", "90%", "99%", "99.9%")]


def row(*cells: object) -> None:
    """Print a row; its last cell is the percentiles."""
    *texts, values = cells
    assert isinstance(values, Iterable)
    print(f"| {' | '.join([*map(str, texts), *(f'{value:,.1f}' for value in values)])} |", flush=True)


if __name__ == "__main__":
    main()
