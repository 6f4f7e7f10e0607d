"""Counting answers, by a clock of the test's own."""

import pytest

from detbench.api.schemas import Inference
from detbench.load.measure import warnings_of
from detbench.load.recorder import Recorder

ANSWER = Inference(
    implementation="baseline",
    model_set="mixed",
    total_inference_time_ms=80,
    timings_ms={"forward": 60.0, "queue": 5.0},
    batch_size=2,
    detections=[],
)


class Bench:
    """A recorder, and answers that come one second apart."""

    def __init__(self, users: int) -> None:
        self.now = 100.0
        self.recorder = Recorder(users, lambda: self.now)

    def answer(self, user: int, ms: float = 80.0, failed: str | None = None, after_s: float = 1.0) -> None:
        self.now += after_s
        outcome = {} if failed else {"answer": ANSWER}
        error = ValueError(failed) if failed else None
        self.recorder.on_request(response_time=ms, exception=error, context={"user": user, "outcome": outcome})


def test_nothing_counts_before_every_user_had_an_answer():
    bench = Bench(users=3)
    for user in (0, 0, 1, 0):
        bench.answer(user)
    assert (bench.recorder.opened, bench.recorder.warm_users) == (None, 2)
    bench.answer(2)
    assert (bench.recorder.opened, bench.recorder.requests) == (105.0, 0)


def test_the_rate_is_that_of_the_server_whatever_the_duration_cuts():
    bench = Bench(users=1)
    bench.answer(0)
    bench.recorder.close_after(7.0)
    for _ in range(5):
        bench.answer(0, after_s=2.0)  # at 2, 4, 6 and, too late, 8 and 10 s
    load = bench.recorder.load(generator_cpu_percent=5)
    assert (load.requests, load.window_s) == (3, 6.0)
    assert load.rps == pytest.approx(0.5)


def test_percentiles_are_right_to_a_thousandth():
    bench = Bench(users=1)
    bench.answer(0, ms=1e6)
    for ms in range(1, 1001):
        bench.answer(0, ms=float(ms))
    latency = bench.recorder.load(0).latency
    assert latency is not None
    assert latency.p50_ms == pytest.approx(500, rel=1e-3)
    assert latency.p90_ms == pytest.approx(900, rel=1e-3)
    assert latency.p99_ms == pytest.approx(990, rel=1e-3)
    assert latency.max_ms == pytest.approx(1000, rel=1e-3)
    assert latency.mean_ms == pytest.approx(500.5, rel=1e-3)


def test_failures_are_counted_by_reason_and_are_in_no_latency():
    bench = Bench(users=1)
    bench.answer(0)
    bench.answer(0)
    for _ in range(2):
        bench.answer(0, ms=1.0, failed="HTTP 503")
    load = bench.recorder.load(0)
    assert (load.requests, load.failures, load.errors) == (3, 2, {"HTTP 503": 2})
    assert load.rps == pytest.approx(1 / 3)
    assert load.latency is not None
    assert load.latency.p50_ms == pytest.approx(80, rel=1e-3)
    assert (load.stages_ms, load.batch_size_mean) == ({"forward": 60.0, "queue": 5.0}, 2)
    assert "failures" in [warning.code for warning in warnings_of(load)]


def test_without_a_success_there_is_no_latency():
    bench = Bench(users=1)
    bench.answer(0, failed="x")
    bench.answer(0, failed="x")
    load = bench.recorder.load(0)
    assert (load.latency, load.rps, load.failures) == (None, 0.0, 1)


@pytest.mark.parametrize(
    ("cpu", "requests", "codes"), [(50, 200, []), (95, 200, ["generator-busy"]), (50, 9, ["few-requests"])]
)
def test_what_is_to_be_doubted_is_said(cpu: float, requests: int, codes: list[str]):
    bench = Bench(users=1)
    for _ in range(requests + 1):
        bench.answer(0)
    assert [warning.code for warning in warnings_of(bench.recorder.load(cpu))] == codes
