"""What one-shot jobs leave at a Pushgateway: a thin one, and Debian's where it is installed."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from made_reports import START, comparison, run
from prometheus_client.parser import text_string_to_metric_families
from pushgateway_stub import StubPushgateway

from detbench.measure.pushgateway import push_comparisons, push_runs
from detbench.measure.server_process import free_port

BINARY = shutil.which("prometheus-pushgateway") or shutil.which("pushgateway")


@pytest.fixture(params=["thin", "real"])
def gateway(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a Pushgateway."""
    if request.param == "thin":
        with StubPushgateway() as stub:
            yield stub.url
        return
    if BINARY is None:
        pytest.skip("no Pushgateway on the PATH")
    address = f"127.0.0.1:{free_port()}"
    with subprocess.Popen([BINARY, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                try:
                    httpx.get(f"http://{address}/-/ready", trust_env=False)
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield f"http://{address}"
        finally:
            process.terminate()


def figures(gateway: str, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Values of one metric by some of its labels."""
    page = httpx.get(f"{gateway}/metrics", trust_env=False).text
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    }


def test_a_slower_run_of_today_replaces_yesterdays_with_all_its_numbers_of_users(gateway: str):
    push_runs([run("fastest", users, rps) for users, rps in ((1, 20), (16, 90))], url=gateway)
    push_runs([run("baseline", 1, 7)], url=gateway)
    push_runs([run("fastest", 1, 10)], url=gateway)
    found = figures(gateway, "detbench_run_rps", "implementation", "users")
    assert found == {("fastest", "1"): 10, ("baseline", "1"): 7}
    push_runs([run("fastest", 1, 10), run("fastest", 4, 12)], url=gateway)
    assert figures(gateway, "detbench_run_rps", "implementation", "users") == {
        **{("fastest", "1"): 10, ("fastest", "4"): 12, ("baseline", "1"): 7},
    }


def test_a_run_that_failed_leaves_no_figure_of_an_earlier_one(gateway: str):
    push_runs([run("fastest", 1, 20)], url=gateway)
    ended = START + timedelta(days=1)
    failed = run("fastest", 1, 20).model_copy(
        update={"verdict": "failed", "load": None, "memory": None, "ended": ended}
    )
    push_runs([failed], url=gateway)
    names = ("rps", "latency_seconds", "failures", "memory_peak_bytes")
    for name in (f"detbench_run_{name}" for name in names):
        assert figures(gateway, name, "implementation") == {}
    assert figures(gateway, "detbench_run_timestamp_seconds", "users") == {("1",): ended.timestamp()}


def test_the_memory_peak_of_a_run_is_in_bytes(gateway: str):
    push_runs([run("baseline", 1, 20)], url=gateway)
    assert figures(gateway, "detbench_run_memory_peak_bytes", "users") == {("1",): pytest.approx(1234.4e6)}


def test_numbers_of_replicas_have_series_of_their_own(gateway: str):
    push_runs([run("fastest", 8, 20.0 * n).model_copy(update={"replicas": n}) for n in (1, 2)], url=gateway)
    found = figures(gateway, "detbench_run_rps", "users", "replicas")
    assert found == {("8", "1"): 20, ("8", "2"): 40}


def test_a_run_of_another_model_set_replaces_nothing(gateway: str):
    push_runs([run("fastest", 1, 20)], url=gateway)
    push_runs([run("fastest", 1, 30).model_copy(update={"model_set": "uniform"})], url=gateway)
    assert figures(gateway, "detbench_run_rps", "model_set") == {("mixed",): 20, ("uniform",): 30}


def test_a_comparison_replaces_models_that_are_no_longer_in_the_set(gateway: str):
    before = comparison("fastest", 2e-7)
    push_comparisons([before], gateway)
    assert len(figures(gateway, "detbench_boxes_mse", "model")) == 3
    first = dict(list(before.per_model.items())[:1])
    began = time.time()
    push_comparisons([before.model_copy(update={"per_model": first})], gateway)
    assert set(figures(gateway, "detbench_boxes_mse", "model")) == {("all",), tuple(first)}
    assert figures(gateway, "detbench_compare_timestamp_seconds", "implementation")["fastest",] >= began


def test_figures_go_to_the_pushgateway_and_through_no_proxy(gateway: str, monkeypatch: pytest.MonkeyPatch, capsys):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("BENCHMARK_PUSHGATEWAY_URL", f"{gateway}/")
    push_runs([run("fastest", 1, 20)])
    assert capsys.readouterr().err == ""
    assert len(figures(gateway, "detbench_run_rps", "users")) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[", "nonsense://x"])
def test_a_pushgateway_that_cannot_be_reached_costs_a_warning(url: str, capsys):
    push_runs([run("fastest", 1, 20)], url=url)
    assert "did not take the figures" in capsys.readouterr().err
