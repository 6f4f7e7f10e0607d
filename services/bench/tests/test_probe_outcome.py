"""What a probe says of its rate, from loads made by hand."""

from typing import Any

import pytest
from made_reports import load, times

from detbench.host import CpuShares
from detbench.measure.probe_outcome import hopeless, outcome_of, requests_needed
from detbench.results.loads import Lateness, Load, OpenLoop, Series
from detbench.results.sweep import Run
from detbench.slo import objective
from detbench.verdict import judged

P99 = objective("p99=200ms")
ERRORS = objective("errors=1%")


def offered(p50_ms: float = 100.0, **changes: Any) -> Load:
    """50 requests a second for 20 s, all of which were answered in time; p99 is half as much again as p50."""
    return load(50.0, p50_ms).model_copy(update={"offered_rps": 50.0} | changes)


def outcome(made: Load, *limits: str, steal: float = 0.0) -> tuple[str, str]:
    slo = [objective(limit) for limit in limits]
    run = Run(
        implementation="x",
        model_set="single",
        offered=OpenLoop(schedule="50 requests/s, Poisson", rate=50.0, max_in_flight=256),
        verdict="failed",
        load=made,
        cpu=CpuShares(busy=0.5, steal=steal),
    )
    return outcome_of(judged(run, slo), slo)


def rising(from_ms: float, to_ms: float) -> Series:
    """Latency by second, as of a queue that grows."""
    means = [from_ms + (to_ms - from_ms) * second / 19 for second in range(20)]
    return Series(answered=[50] * 20, issued=[50] * 20, latency_mean_ms=means)


LATE = Lateness(p50_ms=1.0, p99_ms=80.0, max_ms=90.0)


@pytest.mark.parametrize(
    ("made", "limits", "expected", "reason"),
    [
        (offered(), ("p99=200ms", "errors=1%"), "passed", ""),
        (offered(), ("p99=120ms",), "failed", "p99 150 ms"),
        (offered(answered=985, failed=15, errors={"HTTP 500": 15}), ("p50=1s", "errors=1%"), "failed", "errors 1.5 %"),
        (
            offered(generator_cpu_percent=[97.0]),
            ("p99=120ms",),
            "unusable",
            "p99 150 ms, but the load generator used 97 %",
        ),
        (offered(generator_cpu_percent=[97.0]), ("p99=200ms",), "passed", ""),
        (offered(lateness=LATE, service=times(60, 1000)), ("p99=120ms",), "unusable", "80.0 ms late or more"),
        (offered(lateness=LATE, service=times(90, 1000)), ("p99=120ms",), "failed", "p99 150 ms"),
        (offered(lateness=LATE, service=times(90, 1000)), ("p99=200ms",), "passed", ""),
        (offered(answered=950, dropped=50), ("p99=200ms",), "failed", "50 of 1,000 requests were not sent"),
        (offered(rps=45.0), ("p99=200ms",), "failed", "45 of the 50 requests/s that were offered"),
        # 10 % of 20 s are 2 s of load, which may be on its way where 3 s are allowed.
        (offered(rps=45.0), ("p99=3s",), "passed", ""),
        # Of so few requests one that is on its way at the end is a seventh.
        (offered(issued=7, answered=7, offered_rps=0.35, rps=0.3), ("p50=200ms",), "passed", ""),
        (offered(series=rising(100, 600)), ("p99=3s",), "failed", "latency went up"),
        (offered(series=rising(600, 100)), ("p99=3s",), "passed", ""),
        (offered(series=rising(100, 150)), ("p99=3s",), "passed", ""),
        (offered(issued=0, answered=0, latency=None, service=None), ("p99=3s",), "unusable", "no request arrived"),
        (
            offered(answered=100, failed=900, errors={"HTTP 500": 900}),
            ("errors=1%",),
            "failed",
            "100 of 1,000 requests",
        ),
    ],
)
def test_a_failure_is_the_servers_or_says_nothing(made: Load, limits: tuple[str, ...], expected: str, reason: str):
    found, why = outcome(made, *limits)
    assert found == expected
    assert reason in why
    assert bool(why) == (found != "passed")


def test_a_failure_while_cores_were_taken_away_says_nothing():
    assert outcome(offered(), "p99=120ms", steal=0.2)[0] == "unusable"
    assert outcome(offered(), "p99=200ms", steal=0.2) == ("passed", "")


def message(**changes: Any) -> dict[str, Any]:
    quiet = {"failed": 0, "dropped": 0, "in_flight": 5, "late": {"p99": 0}, "cpu_percent": 20.0}
    return {"phase": "measure", "elapsed_s": 2.0} | quiet | changes


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (message(), None),
        (message(late={"p99": 10}), None),
        (
            message(late={"p99": 11}, in_flight=40),
            ("failed", "p99 ≤ 200 ms out of reach after 2.0 s: 11 requests took longer, 40 are"),
        ),
        (message(late={"p99": 11}, cpu_percent=95.0), ("unusable", "but the load generator used 95 % of a core")),
        (message(failed=6, dropped=5), ("failed", "errors ≤ 1 % out of reach after 2.0 s: 11 requests failed")),
        (message(phase="warmup", late={"p99": 99}), None),
    ],
)
def test_a_probe_that_cannot_pass_any_more_is_told_with_the_reason(
    said: dict[str, Any], expected: tuple[str, str] | None
):
    found = hopeless(said, [P99, ERRORS], requests=1_000)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found[0], expected[1] in found[1]) == (expected[0], True)


def test_what_is_not_sent_is_too_much_where_no_limit_is_of_errors():
    assert hopeless(message(dropped=10), [P99], requests=1_000) is None
    found = hopeless(message(dropped=11), [P99], requests=1_000)
    assert found is not None
    assert "11 requests were not sent" in found[1]


def test_the_slowest_request_must_not_be_late_at_all():
    assert hopeless(message(late={"max": 1}), [objective("max=1s")], requests=1_000) is not None


def test_the_requests_that_certify_every_limit():
    slo = [objective("p50=0.2s"), P99, objective("p90=1s"), ERRORS, objective("memory=1GB")]
    assert [requests_needed([each]) for each in slo] == [11, 662, 64, 662, 64]
    assert requests_needed(slo) == 662
    assert requests_needed([objective("errors=0%")]) == requests_needed([objective("errors=0.1%")]) == 6_636
