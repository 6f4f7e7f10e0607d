"""Counting requests at times of the test's own, and the figures that come of the counts."""

import math
from pathlib import Path

import pytest

from detbench.api.schemas import Inference
from detbench.host import CpuShares
from detbench.load.answers import DistinctAnswers, read_answers
from detbench.load.figures import load_of, together
from detbench.load.recorder import Recorder, Request
from detbench.load.tally import Tally, merged
from detbench.results.loads import ClosedLoop, Load, OpenLoop
from detbench.verdict import doubts_of, stolen

ANSWER = Inference(
    implementation="baseline",
    model_set="mixed",
    total_inference_time_ms=80,
    timings_ms={"forward": 60.0, "queue": 5.0},
    batch_size=2,
    detections=[],
)
OPEN = OpenLoop(schedule="1 requests/s, constant", rate=1.0, max_in_flight=256)
CLOSED = ClosedLoop(users=1)


class Bench:
    """A recorder with a window from 100 to 110 s, unless `window` says otherwise."""

    def __init__(
        self, window: tuple[float, float] | None = (100.0, 110.0), answers: DistinctAnswers | None = None
    ) -> None:
        self.recorder = Recorder(answers=answers)
        if window:
            self.recorder.open(*window)

    def request(
        self,
        scheduled_s: float,
        took_s: float | None,
        failed: str | None = None,
        late_s: float = 0.0,
        user: int = 0,
        replica: str | None = None,
    ) -> None:
        """A request that was sent `late_s` late and took `took_s`; None: there is no answer yet."""
        request = Request(user, scheduled_s + late_s, scheduled_s, photo="photo")
        self.recorder.sending(request)
        if took_s is None:
            return
        request.answer = None if failed else ANSWER.model_copy(update={"replica": replica})
        error = ValueError(failed) if failed else None
        self.recorder.on_request(response_time=1e3 * took_s, exception=error, context={"request": request})

    def tally(self) -> Tally:
        return self.recorder.tally(cpu_percent=5, drain_s=30)

    def load(self, offered: ClosedLoop | OpenLoop = OPEN) -> Load:
        return load_of(self.tally(), offered)


def account(load: Load) -> tuple[int, int, int, int]:
    assert load.issued == load.answered + load.failed + load.dropped
    return load.issued, load.answered, load.failed, load.dropped


@pytest.mark.parametrize(
    ("scheduled_s", "took_s", "failed", "counts", "answered_within"),
    [
        (99.9, 0.5, None, (0, 0, 0, 0), 1),  # before the window: an answer of it all the same
        (100.0, 0.5, None, (1, 1, 0, 0), 1),
        (109.0, 1.0, None, (1, 1, 0, 0), 1),
        (109.9, 60.0, None, (1, 1, 0, 0), 0),  # answered long after the window: its latency counts
        (110.1, 0.5, None, (0, 0, 0, 0), 0),
        (105.0, 0.5, "HTTP 503", (1, 0, 1, 0), 0),
        (105.0, None, None, (1, 0, 1, 0), 0),  # never answered
        (105.0, 3700.0, None, (1, 0, 1, 0), 0),  # longer than the histogram
    ],
)
def test_what_is_issued_in_the_window_counts_however_late_it_ends(
    scheduled_s: float, took_s: float | None, failed: str | None, counts: tuple[int, ...], answered_within: int
):
    bench = Bench()
    bench.request(scheduled_s, took_s, failed)
    tally = bench.tally()
    assert account(load_of(tally, OPEN)) == counts
    assert tally.answered_within == answered_within


def test_the_answers_that_are_kept_are_those_that_count(tmp_path: Path):
    answers = DistinctAnswers()
    bench = Bench(window=None, answers=answers)
    bench.request(99.0, 0.5)
    bench.request(99.9, 0.5)  # answered in the window, and sent before
    bench.request(100.1, 0.1)
    bench.recorder.open(100.0, 110.0)
    for scheduled_s, took_s, failed in (
        (109.9, 60.0, None),
        (110.1, 0.1, None),
        (105.0, 0.1, "HTTP 503"),
        (105.0, 3700.0, None),
    ):
        bench.request(scheduled_s, took_s, failed)
    answers.write(tmp_path)
    assert [each.times[None] for each in read_answers(tmp_path)] == [bench.load().answered] == [2]


def test_answers_are_counted_by_replica_and_processes_add_up():
    benches = [Bench(), Bench()]
    for bench, replicas in zip(benches, (("a", "b", "a"), ("b", "c")), strict=True):
        for number, replica in enumerate(replicas):
            bench.request(101.0 + number, 0.5, replica=replica)
        bench.request(109.9, 5.0, replica="late")  # after the window, as it counts in no rate
        bench.request(105.0, 0.5, "HTTP 503", replica="broken")
    load = load_of(merged([bench.tally() for bench in benches]), OPEN)
    assert load.replicas_rps == {"a": 0.2, "b": 0.2, "c": 0.1}
    assert sum(load.replicas_rps.values()) == pytest.approx(load.rps)


def test_a_replica_that_was_there_for_a_part_of_the_load_has_its_rate_in_that_part():
    first, second = Bench(), Bench(window=(200.0, 230.0))
    for replica in ("a", "b"):
        first.request(101.0, 0.5, replica=replica)
    second.request(201.0, 0.5, replica="a")
    assert together([first.load(), second.load()]).replicas_rps == {"a": pytest.approx(2 / 40), "b": 0.1}


def test_failures_have_names():
    bench = Bench()
    for failed in ("HTTP 503", "HTTP 503", "empty answer"):
        bench.request(101, 0.1, failed)
    bench.request(102, None)
    bench.request(103, 3700.0)
    assert bench.load().errors == {
        "HTTP 503": 2,
        "empty answer": 1,
        "no answer within 30 s after the end of the load": 1,
        "answered after more than 3600 s": 1,
    }


def test_latency_counts_from_the_scheduled_time_and_service_from_sending():
    bench = Bench()
    for number in range(10):
        bench.request(100 + number, took_s=0.2, late_s=0.05 if number < 9 else 0.3)
    load = bench.load()
    assert load.latency is not None
    assert load.service is not None
    assert load.lateness is not None
    assert load.latency.p50.value_ms == pytest.approx(250, rel=1e-3)
    assert load.latency.max_ms == pytest.approx(500, rel=1e-3)
    assert load.service.max_ms == load.service.p50.value_ms == pytest.approx(200, rel=1e-3)
    assert (load.lateness.p50_ms, load.lateness.max_ms) == pytest.approx((50, 300), rel=1e-3)
    assert "sent-late" in [warning.code for warning in doubts_of(load, OPEN)]


def test_percentiles_are_right_to_a_thousandth():
    bench = Bench()
    for ms in range(1, 1001):
        bench.request(105, ms / 1e3)
    latency = bench.load().latency
    assert latency is not None
    assert [each.value_ms for each in latency.percentiles().values()] == pytest.approx([500, 900, 990, 999], rel=1e-3)
    assert (latency.max_ms, latency.mean_ms) == pytest.approx((1000, 500.5), rel=1e-3)


def test_three_failures_of_a_hundred_make_p99_infinite_in_json_too():
    bench = Bench()
    for number in range(100):
        bench.request(105, 0.02, "HTTP 500" if number % 33 == 1 else None)
    load = Load.model_validate_json(bench.load().model_dump_json())
    assert account(load) == (100, 97, 3, 0)
    assert load.latency is not None
    assert load.latency.p90.value_ms == pytest.approx(20, rel=1e-3)
    assert load.latency.p99.value_ms == load.latency.max_ms == math.inf
    assert load == bench.load()


def test_a_slot_that_was_not_sent_is_an_infinite_latency_and_no_service():
    bench = Bench()
    for number in range(9):
        bench.request(100 + number, 0.1)
    bench.recorder.drop(0.0)
    load = bench.load()
    assert account(load) == (10, 9, 0, 1)
    assert load.latency is not None
    assert load.service is not None
    assert (load.latency.p99.value_ms, load.service.p99.value_ms) == (math.inf, pytest.approx(100, rel=1e-3))
    (dropped,) = [each for each in doubts_of(load, OPEN) if each.code == "dropped"]
    assert "1 of 10 requests were not sent" in dropped.message


def test_the_rate_of_an_open_loop_is_that_of_its_window():
    bench = Bench()
    for number in range(40):
        bench.request(100 + number / 4, took_s=3.0)
    load = bench.load()
    assert (load.window_s, load.offered_rps, load.rps) == (10, 4.0, pytest.approx(2.9))
    assert "rate-not-achieved" in [warning.code for warning in doubts_of(load, OPEN)]


def test_the_rate_of_a_closed_loop_is_that_of_the_server_whatever_the_duration_cuts():
    bench = Bench(window=None)
    bench.request(98, 2.0)
    assert (bench.recorder.warm_users, bench.recorder.warmed_s) == (1, 100.0)
    bench.recorder.open(100.0, 107.0)
    for number in range(4):
        bench.request(100 + 2.0 * number, 2.0)  # answered at 102, 104, 106 and, too late for the rate, 108 s
    load = bench.load(CLOSED)
    assert account(load) == (4, 4, 0, 0)
    assert (load.window_s, load.rps) == (6.0, pytest.approx(0.5))


def test_what_ends_before_the_window_is_known_counts_when_it_is():
    bench = Bench(window=None)
    for user, began_s in enumerate((98.0, 98.5)):
        bench.request(began_s, 1.0, user=user)
    bench.request(99.6, 0.2)  # another process may open the window later than this one's users are warm
    assert (bench.recorder.warm_users, bench.recorder.warmed_s, bench.recorder.ended) == (2, 99.5, 0)
    bench.recorder.open(99.5, 109.5)
    assert bench.recorder.ended == 1
    assert account(bench.load(CLOSED)) == (1, 1, 0, 0)


def test_processes_add_up_to_what_one_would_have_counted():
    whole, parts = Bench(), [Bench(), Bench(), Bench()]
    for number in range(60):
        for bench in (whole, parts[number % 3]):
            bench.request(
                100 + number / 6, 0.01 * number, "HTTP 500" if number % 20 == 9 else None, late_s=number / 1e4
            )
    for bench in (whole, parts[1]):
        bench.recorder.drop(0.0)
    one, sum_ = whole.load(), load_of(merged([part.tally() for part in parts]), OPEN)
    assert sum_.generator_cpu_percent == [5, 5, 5]
    for name in Load.model_fields.keys() - {"generator_cpu_percent", "latency", "service", "series", "stages_ms"}:
        assert getattr(sum_, name) == getattr(one, name)
    for one_times, sum_times in ((one.latency, sum_.latency), (one.service, sum_.service)):
        assert one_times is not None
        assert sum_times is not None
        assert sum_times.percentiles() == one_times.percentiles()
    assert sum_.series.answered == one.series.answered
    assert sum_.stages_ms == pytest.approx(one.stages_ms)


def test_without_a_success_there_is_no_rate_and_every_percentile_is_infinite():
    bench = Bench()
    for _ in range(3):
        bench.request(101, 0.1, "HTTP 500")
    load = bench.load()
    assert (load.rps, load.stages_ms, load.batch_size_mean) == (0.0, {}, None)
    assert load.latency is not None
    assert (load.latency.mean_ms, load.latency.p50.value_ms) == (None, math.inf)
    assert Bench().load().latency is None


def test_stages_and_batches_are_means_of_the_answers():
    bench = Bench()
    for number in range(4):
        bench.request(101, 0.1, "HTTP 500" if number == 3 else None)
    load = bench.load()
    assert (load.stages_ms, load.batch_size_mean) == ({"forward": 60.0, "queue": 5.0}, 2)
    assert "failures" in [warning.code for warning in doubts_of(load, CLOSED)]


@pytest.mark.parametrize(
    ("cpu", "requests", "codes"),
    [
        ([50], 700, []),
        ([50, 95], 700, ["generator-busy"]),
        ([50], 99, ["few-requests"]),
    ],
)
def test_what_is_to_be_doubted_is_said(cpu: list[float], requests: int, codes: list[str]):
    bench = Bench()
    for number in range(requests):
        bench.request(100 + 9.9 * number / requests, 0.01)
    load = bench.load(CLOSED).model_copy(update={"generator_cpu_percent": cpu})
    assert [warning.code for warning in doubts_of(load, CLOSED)] == codes


def test_a_latency_that_grows_is_a_drift_unless_the_load_has_steps():
    bench = Bench()
    for number in range(400):
        bench.request(100 + number / 40, 0.1 + number / 2000)
    load = bench.load()
    assert "latency-drifts" in [warning.code for warning in doubts_of(load, OPEN)]
    steps = OPEN.model_copy(update={"rate": None, "steps": "5s:20,5s:60"})
    assert "latency-drifts" not in [warning.code for warning in doubts_of(load, steps)]


@pytest.mark.parametrize(
    ("cpu", "codes"), [(None, []), (CpuShares(0.9, 0.05), []), (CpuShares(0.9, 0.06), ["cores-taken"])]
)
def test_what_the_host_takes_away_is_doubted_from_a_twentieth_on(cpu: CpuShares | None, codes: list[str]):
    assert [warning.code for warning in stolen(cpu)] == codes


def test_requests_that_cannot_hold_a_limit_any_more_are_counted_while_the_window_is_open():
    recorder = Recorder(limits_s={"p99": 1.0, "p50": 0.2})
    recorder.open(0.0, 10.0)
    requests = [
        Request(0, sent_s, sent_s - 5.0 * (sent_s == 5.5), ANSWER, photo="") for sent_s in (0.5, 1.0, 1.5, 2.0, 5.5)
    ]
    for request in requests:
        recorder.sending(request)
    recorder.on_request(100.0, None, {"request": requests[0]})  # in time
    recorder.on_request(500.0, None, {"request": requests[1]})  # late for one limit
    recorder.on_request(100.0, ValueError("HTTP 500"), {"request": requests[2]})  # failed
    # Of those that wait, one has waited for 4 s, and one for 0.5 s since it was sent, however late that was.
    assert recorder.late(now_s=6.0) == {"p99": 2, "p50": 4}
    assert (recorder.failed, recorder.under_way) == (1, 2)
