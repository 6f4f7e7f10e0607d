"""Drift within a run, in simulated runs with and without one."""

import numpy as np

from detbench.measure.statistics.drift import SMALLEST_DRIFT, Trend, latency_trend, rate_trend

WINDOW_S = 30.0


def closed_loop(rng: np.random.Generator, change: float, rate: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    """When one user's requests were sent, and their latencies in ms: they change linearly, with 10 % of noise."""
    sent, latencies, now = [], [], 0.0
    for noise in rng.lognormal(0, 0.1, int(3 * rate * WINDOW_S)):
        latency_s = (1 + change * now / WINDOW_S) * noise / rate
        sent.append(now)
        latencies.append(latency_s * 1e3)
        now += latency_s
        if now > WINDOW_S:
            break
    return np.array(sent), np.array(latencies)


def trends(rng: np.random.Generator, change: float) -> tuple[Trend | None, Trend | None]:
    sent, latencies = closed_loop(rng, change)
    return latency_trend(sent, latencies, WINDOW_S), rate_trend(sent + latencies / 1e3, WINDOW_S)


def test_latency_that_grows_by_20_percent_drifts_and_so_does_throughput():
    rng = np.random.default_rng(1)
    for _ in range(20):
        latency, rate = trends(rng, 0.2)
        assert latency.drifting
        assert 0.1 < latency.change < 0.3
        assert rate.drifting
        assert -0.3 < rate.change < -0.1


def test_a_warm_up_that_has_not_ended_is_a_drift():
    rng = np.random.default_rng(2)
    sent = np.sort(rng.uniform(0, WINDOW_S, 600))
    latencies = 100 * (1 + 0.5 * np.exp(-sent / 10)) * rng.lognormal(0, 0.1, 600)
    trend = latency_trend(sent, latencies, WINDOW_S)
    assert trend.drifting
    assert trend.change < -SMALLEST_DRIFT


def test_a_steady_run_is_called_drifting_in_about_one_of_a_hundred():
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(500):  # Poisson arrivals and a long tail: 90 answers, so that chance alone makes large slopes
        sent = rng.uniform(0, WINDOW_S, 90)
        latency, rate = latency_trend(sent, rng.lognormal(4, 0.5, 90), WINDOW_S), rate_trend(sent, WINDOW_S)
        alarms += latency.drifting + rate.drifting
    assert alarms / 1000 < 0.02


def test_a_significant_trend_that_is_tiny_is_no_drift():
    sent = np.linspace(0, WINDOW_S, 3000)
    latencies = 100 + 2 * sent / WINDOW_S  # 2 % of drift and no noise at all
    trend = latency_trend(sent, latencies, WINDOW_S)
    assert trend.p_value < 1e-6
    assert not trend.drifting


def test_a_stall_in_the_middle_is_no_drift():
    rng = np.random.default_rng(4)
    sent = np.linspace(0, WINDOW_S, 600)
    latencies = rng.lognormal(4, 0.1, 600)
    latencies[300:320] *= 50
    assert not latency_trend(sent, latencies, WINDOW_S).drifting


def test_a_server_that_stops_halfway_drifts():
    trend = rate_trend(np.linspace(0, WINDOW_S * 0.45, 500), WINDOW_S)
    assert trend.drifting
    assert trend.change < 0


def test_equal_bins_have_no_trend():
    sent = np.arange(0.05, WINDOW_S, 0.1)
    assert rate_trend(sent, WINDOW_S) == latency_trend(sent, np.full(len(sent), 7.0), WINDOW_S) == Trend(0.0, 1.0)


def test_too_few_answers_cannot_say():
    assert rate_trend(np.linspace(0, 1, 39), 1.0) is None
    assert rate_trend([], 0.0) is None
    assert latency_trend(np.linspace(0, 0.2, 100), np.ones(100), 1.0) is None
    assert rate_trend(np.linspace(-1, 0.1, 100), 1.0) is None
