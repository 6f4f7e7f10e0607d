"""The load generator end to end: its processes against a server whose service times are known beforehand."""

import contextlib
import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripted_server import Script, ScriptedServer, implied

from detbench.errors import ServerError
from detbench.load.schedules import Schedule, schedule_of
from detbench.measure.generators import LoadRequest, run_load
from detbench.results.loads import ClosedLoop, Load, OpenLoop
from detbench.statistics.percentiles import percentiles
from detbench.verdict import doubts_of

# What the calculation leaves out: the way there and back over loopback, and the server's reading and writing of HTTP.
# That is for each of the answers that are due at once, which it goes through one by one.
UNCOUNTED_MS = 1.0


def constantly(seconds: float) -> Script:
    return lambda number, since_s: (seconds, "good")


def bimodal(number: int, since_s: float) -> tuple[float, str]:
    return (0.25 if number % 20 == 7 else 0.02), "good"


def stalling(number: int, since_s: float) -> tuple[float, str]:
    """From the first second to the second one, and so on every three, nothing is answered."""
    within_s = (since_s + 1) % 3
    return 0.02 + (3 - within_s if within_s >= 2 else 0.0), "good"


def open_loop(schedule: Schedule, **changes: Any) -> OpenLoop:
    return OpenLoop(**{"schedule": str(schedule), "max_in_flight": 256} | changes)


def measured(
    server: ScriptedServer,
    photo_dir: Path,
    offered: ClosedLoop | OpenLoop,
    duration_s: float,
    on_message: Callable[[dict[str, Any]], None] = lambda message: None,
    **changes: Any,
) -> Load:
    load = run_load(
        LoadRequest(server.host, "scripted", "single", str(photo_dir), photo_dir, 1, offered, duration_s, **changes),
        on_message,
    )
    assert load.issued == load.answered + load.failed + load.dropped
    assert load.failed == sum(load.errors.values())
    return load


@pytest.mark.parametrize(
    ("script", "workers", "rate", "duration_s", "processes", "at_once"),
    [
        pytest.param(constantly(0.02), None, 60.0, 3.0, 1, 1, id="constant", marks=pytest.mark.slow),
        pytest.param(bimodal, None, 60.0, 3.0, 1, 1, id="bimodal"),
        pytest.param(stalling, None, 60.0, 4.0, 2, 60, id="a stall, two processes"),
        pytest.param(constantly(0.1), 1, 20.0, 2.0, 1, 1, id="twice what it can"),
    ],
)
def test_latency_is_what_the_schedule_implies(
    script: Script, workers: int | None, rate: float, duration_s: float, processes: int, at_once: int, photo_dir: Path
):
    schedule = schedule_of(rate=rate, seed=5)
    offered = open_loop(schedule, rate=rate, seed=5)
    with ScriptedServer(script, workers) as server:
        load = measured(server, photo_dir, offered, duration_s, processes=processes)
    arrivals_s = schedule.between(0, duration_s).tolist()
    assert (load.issued, load.failed, load.dropped) == (len(arrivals_s), 0, 0)
    assert len(load.generator_cpu_percent) == processes
    latencies_ms = [
        1e3 * latency_s for latency_s in implied(arrivals_s, lambda number, _: (server.took_s[number], "good"), workers)
    ]
    assert load.latency is not None
    assert load.service is not None
    assert load.lateness is not None
    # What both sides say themselves of how long they had to wait for a core; each may be on the way there and back.
    waited_ms = 2 * (load.lateness.max_ms + 1e3 * server.lag_s)
    for expected, found in zip(percentiles(latencies_ms), load.latency.percentiles().values(), strict=True):
        assert found.value_ms > 0.98 * expected.value_ms
        if found.certified:  # else a single request that waited for a core decides
            assert found.value_ms < 1.02 * expected.value_ms + at_once * UNCOUNTED_MS + waited_ms
    if workers:  # the queue grows: latency is far above what the server takes
        assert load.latency.p50.value_ms > 4 * 100
        assert "rate-not-achieved" in [warning.code for warning in doubts_of(load, offered)]


def test_what_is_wrong_with_an_answer_is_a_failure_by_name(photo_dir: Path):
    kinds = ("error", "empty", "truncated", "cut JSON", "no model", "NaN", "infinity")

    def script(number: int, since_s: float) -> tuple[float, str]:
        return 0.001, kinds[number // 5 % 7] if number % 5 == 2 else "good"

    schedule = schedule_of(rate=70, arrivals="constant")
    with ScriptedServer(script) as server:
        load = measured(server, photo_dir, open_loop(schedule, rate=70, arrivals="constant"), 1.0)
    assert (load.issued, load.failed) == (70, 14)
    assert set(load.errors.values()) == {2}
    assert sorted(load.errors) == [
        'HTTP 500: {"detail": "broken"}',
        "detections of no model, not of tf_efficientdet_d0",
        "empty answer",
        "malformed answer: a NaN or an infinity among the boxes of tf_efficientdet_d0",
        "malformed answer: a NaN or an infinity among the scores of tf_efficientdet_d0",
        "malformed answer: truncated, or no JSON",
        "truncated answer",
    ]
    assert load.latency is not None
    assert (load.latency.p50.value_ms < 50, load.latency.p90.value_ms) == (True, float("inf"))


def test_what_is_never_answered_is_a_failure_by_name(photo_dir: Path):
    schedule = schedule_of(rate=20, arrivals="constant")
    offered = open_loop(schedule, rate=20, arrivals="constant", max_in_flight=15)
    with ScriptedServer(lambda number, since_s: (60.0 if number % 2 else 0.001, "good")) as server:
        load = measured(server, photo_dir, offered, 2.0, drain_s=0.5)
    # Every second one takes a sender away: after 30 slots none is left.
    assert (load.issued, load.answered, load.failed, load.dropped) == (40, 15, 15, 10)
    assert load.errors == {"no answer within 0.5 s after the end of the load": 15}
    assert {"dropped", "failures", "rate-not-achieved"} <= {each.code for each in doubts_of(load, offered)}


def test_ten_times_what_a_generator_can_send_is_told_with_the_reason(photo_dir: Path):
    schedule = schedule_of(rate=20_000)
    offered = open_loop(schedule, rate=20_000.0, max_in_flight=32)
    with ScriptedServer(constantly(0.0)) as server:
        load = measured(server, photo_dir, offered, 1.0)
    assert load.issued == len(schedule.between(0, 1.0))
    assert load.dropped > load.issued / 2
    said = {warning.code: warning for warning in doubts_of(load, offered)}
    assert {"dropped", "rate-not-achieved"} <= set(said)
    assert f"{load.dropped:,} of {load.issued:,} requests were not sent" in said["dropped"].message


def test_a_closed_loop_of_two_processes_has_one_window(photo_dir: Path):
    with ScriptedServer(constantly(0.05)) as server:
        load = measured(server, photo_dir, ClosedLoop(users=3), 2.0, processes=2)
    assert load.latency is not None
    assert (load.failed, load.dropped, load.offered_rps, load.lateness) == (0, 0, None, None)
    assert len(load.generator_cpu_percent) == 2
    # Little's law: users = rate x latency, up to what lies between two requests of a user.
    assert load.latency.mean_ms is not None
    assert load.rps * load.latency.mean_ms / 1e3 == pytest.approx(3, rel=0.1)


def generators() -> list[int]:
    """Processes of the load generator that this process has had started, and that have not ended."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, too
            if "detbench.load.fork_server" in child.cmdline():
                found += [each.pid for each in child.children() if each.status() != psutil.STATUS_ZOMBIE]
    return found


def test_a_process_of_the_generator_that_dies_fails_the_load(photo_dir: Path):
    def kill_one(message: dict[str, Any]) -> None:
        if message.get("phase") == "measure":
            os.kill(generators()[-1], signal.SIGKILL)

    with ScriptedServer(constantly(0.01)) as server:
        with pytest.raises(ServerError, match=r"ended without a result \(exit status -9\)"):
            measured(server, photo_dir, ClosedLoop(users=2), 30.0, kill_one, processes=2, drain_s=5.0)
    assert not generators()


def test_a_run_of_which_everything_fails_serves_nothing(detbench, photo_dir: Path, tmp_path: Path, capsys):
    trace = tmp_path / "arrivals.txt"
    trace.write_text("0\n0.2\n0.2\n0.7\n")  # the last one comes at the end of the load, and is sent
    with ScriptedServer(lambda number, since_s: (0.001, "error" if number else "good")) as server:
        run = ("run", "--host", server.host, "--implementations", "scripted", "--warmup", "1", "--dataset", photo_dir)
        assert detbench(*run, "--trace", trace) == 1
    (run_dir,) = (tmp_path / "outputs").glob("*-single")
    (found,) = json.loads((run_dir / "results.json").read_text())["runs"]
    assert (found["verdict"], found["load"]["rps"], found["load"]["failed"]) == ("failed", 0, 4)
    assert found["load"]["latency"]["p50"]["value_ms"] == "Infinity"
    assert "0 of 4 requests succeeded; most often: HTTP 500" in found["reason"]
    (row,) = csv.DictReader((run_dir / "results.csv").read_text().splitlines())
    assert (row["load"], row["p50_ms"], row["service_p99_ms"]) == (f"4 requests in 0.7 s, as in {trace}", "inf", "inf")
    assert "∞" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--rate", "5", "--users", "2"), "--users is a closed loop"),
        (("--rate", "5", "--steps", "1s:5"), "--rate and --steps exclude each other"),
        (("--arrivals", "constant"), "name --rate, --steps or --trace"),
        (("--rate", "0"), "--rate is 0"),
        (("--rate", "5", "--ablation"), "an ablation times batches"),
    ],
)
def test_loads_that_contradict_each_other_are_told_in_a_line(detbench, capsys, options: tuple[str, ...], reason: str):
    assert detbench("run", "--host", "http://127.0.0.1:9", *options) == 2
    assert reason in capsys.readouterr().err
