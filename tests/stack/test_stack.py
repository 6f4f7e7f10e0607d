"""The stack on a real engine: up, load, scale, kill, down. The tests build on each other, in their order."""

import json
import re
import socket
import time
from pathlib import Path

import pytest
from running_stack import (
    PORTS,
    ROOT,
    Stack,
    addresses_elsewhere,
    assert_without_rights,
    eventually,
    panels,
    refused_uploads,
)

pytestmark = pytest.mark.timeout(900)
OURS = ("inference", "locust-master", "locust-worker")
WITH_GPU = ("-f", "compose.yaml")
CLUSTER_WITH_GPUS = (*WITH_GPU, "-f", "compose.ray.yaml", "-f", "compose.ray.gpu.yaml")


@pytest.mark.parametrize("files", [WITH_GPU, CLUSTER_WITH_GPUS])
def test_compose_files_are_valid_and_env_example_shows_the_defaults(
    stack: Stack, tmp_path: Path, files: tuple[str, ...]
):
    everything = tmp_path / "everything.env"
    everything.write_text(re.sub(r"^#([A-Z_]+=)", r"\1", (ROOT / ".env.example").read_text(), flags=re.M))
    (tmp_path / "empty.env").touch()
    empty, uncommented = (
        stack.docker("compose", "--env-file", str(tmp_path / file), *files, "config").stdout
        for file in ("empty.env", "everything.env")
    )
    assert empty == uncommented


def test_without_a_gpu_none_is_reserved(stack: Stack):
    on_cpu = json.loads(stack.compose("config", "--format", "json").stdout)["services"]
    assert "deploy" not in on_cpu["inference"] or not on_cpu["inference"]["deploy"].get("resources")
    assert "dcgm-exporter" not in on_cpu


def test_prometheus_accepts_configuration_and_rules_and_the_rules_pass_their_tests(stack: Stack):
    image = re.search(r"prom/prometheus:\S+", (ROOT / "compose.yaml").read_text())
    assert image is not None
    promtool = ("run", "--rm", "-v", f"{ROOT}/prometheus:/etc/prometheus:ro", "--entrypoint", "promtool", image[0])
    rules = [f"/etc/prometheus/rules/{path.name}" for path in (ROOT / "prometheus" / "rules").glob("*.yml")]
    stack.docker(*promtool, "check", "config", "/etc/prometheus/prometheus.yml")
    stack.docker(*promtool, "check", "rules", "--lint=all", "--lint-fatal", *rules)
    stack.docker(*promtool, "test", "rules", "/etc/prometheus/rules/tests/rules_test.yml")


@pytest.mark.parametrize("service", OURS)
def test_a_container_of_ours_has_no_rights(stack: Stack, service: str):
    assert_without_rights(stack, service)


def test_ports_answer_on_loopback_only(stack: Stack):
    elsewhere = addresses_elsewhere()
    assert elsewhere
    for name in ("INFERENCE_PORT", "LOCUST_PORT", "PROMETHEUS_PORT"):
        socket.create_connection(("127.0.0.1", PORTS[name]), timeout=5).close()
        for address in elsewhere:
            with pytest.raises(OSError, match=r"refused|timed out"):
                socket.create_connection((address, PORTS[name]), timeout=5)


def test_every_target_is_up(stack: Stack):
    eventually(lambda: workers_up(stack) == 2 and all(target["health"] == "up" for target in stack.targets()))
    jobs = {target["labels"]["job"] for target in stack.targets()}
    assert jobs == {"prometheus", "inference", "locust-master", "locust-worker", "pushgateway"}


@pytest.mark.parametrize("workers", [2, 4])
def test_locust_and_prometheus_count_the_same_requests(stack: Stack, workers: int):
    stack.compose("up", "--detach", "--no-recreate", "--scale", f"locust-worker={workers}", "locust-worker")
    eventually(lambda: workers_up(stack) == workers == stack.value('sum(detbench_workers{state="ready"})'))
    counts = "sum(detbench_requests_total)", 'sum(detserver_requests_total{status="200"})'
    before = [stack.value(count) for count in counts]
    stack.swarm(users=8, implementation="invalid")
    time.sleep(20)
    stack.stop()
    time.sleep(5)  # two scrapes
    requests = stack.locust_requests()
    assert requests > 50
    for count, since in zip(counts, before, strict=True):
        assert stack.value(count) - since == pytest.approx(requests, rel=0.05)
    busy = stack.query(f"increase(detbench_requests_total{{outcome='success'}}[{30}s]) > 0")
    assert len({series["metric"]["instance"] for series in busy}) == workers


def test_compare_prints_the_table_and_exits_with_the_gate(stack: Stack):
    claims = stack.compose("run", "--rm", "-T", "compare", "--implementations", "baseline", "invalid")
    assert re.search(r"baseline +all .* exact +passed", claims.stdout)
    assert re.search(r"invalid +all .* failed", claims.stdout)
    everyone = ("run", "--rm", "-T", "compare", "--implementations", "invalid", "--gate", "all")
    assert stack.compose(*everyone, check=False).returncode == 1


def test_every_query_of_every_dashboard_returns_data_during_a_load(stack: Stack):
    brief = ("--implementations", "invalid", "--users", "1", "--duration", "3", "--slo", "p99=30s")
    stack.compose("run", "--rm", "-T", "bench", *brief)
    with stack.loaded("invalid"), refused_uploads("invalid"):
        time.sleep(35)  # the rules' windows are 30 s
        empty = [expression for expression in queries() if not stack.query(expression)]
    assert empty == ["max by (figure) (detbench_limit_seconds)"], "a load of Locust has no limits"


def test_a_load_that_the_server_refuses_ends_with_the_reason_and_the_next_one_runs(stack: Stack):
    workers = stack.containers("locust-worker")
    stack.swarm(users=4, implementation="grouped")
    eventually(lambda: any("nothing to stack" in each["error"] for each in stack.statistics()["errors"]))
    eventually(lambda: stack.statistics()["state"] == "stopped")
    time.sleep(4)  # longer than workers take to report
    assert stack.statistics()["state"] == "stopped"
    assert all(each["occurrences"] <= len(workers) for each in stack.statistics()["errors"])
    with stack.loaded("invalid"):
        assert stack.containers("locust-worker") == workers


def test_users_of_a_killed_worker_move_to_the_others(stack: Stack):
    with stack.loaded("invalid"):
        stack.docker("kill", stack.containers("locust-worker")[0])
        eventually(lambda: stack.value('sum(detbench_workers{state="missing"})') == 1)
        eventually(lambda: workers_up(stack) == 3)
        eventually(lambda: stack.value("sum(detbench_users)") == 8)
        assert stack.value('sum(detbench_workers{state="running"})') == 3


def test_a_killed_server_is_seen_and_the_load_goes_on_when_it_is_back(stack: Stack):
    with stack.loaded("invalid"):
        container = stack.containers("inference")[0]
        stack.docker("kill", container)
        eventually(lambda: stack.value('up{job="inference"}') == 0)
        eventually(lambda: stack.value('sum(rate(detbench_requests_total{outcome="no_answer"}[8s]))') > 0)
        eventually(lambda: stack.value('count(ALERTS{alertname="TargetDown",alertstate="firing"})') == 1)
        stack.docker("start", container)
        eventually(lambda: stack.value('sum(rate(detbench_requests_total{outcome="success"}[8s]))') > 0, within_s=180)


def test_a_restarted_master_is_rejoined_by_its_workers(stack: Stack):
    container = stack.containers("locust-master")[0]
    with stack.loaded("invalid"):
        stack.docker("kill", container)
        eventually(lambda: stack.value('up{job="locust-master"}') == 0)
        stack.docker("start", container)
        eventually(lambda: stack.value('sum(detbench_workers{state=~"ready|running"})') == 3, within_s=120)
    with stack.loaded("invalid"):
        eventually(lambda: stack.value('sum(rate(detbench_requests_total{outcome="success"}[8s]))') > 0)


def test_down_leaves_nothing(stack: Stack):
    assert stack.leftovers()
    stack.down()
    assert not stack.leftovers()


def workers_up(stack: Stack) -> float:
    return stack.value('count(up{job="locust-worker"} == 1)')


def queries() -> set[str]:
    """Every query of every dashboard that needs neither a GPU nor a cluster."""
    found = {expression for _, targets in panels() for expression, _ in targets if "ray_" not in expression}
    assert len(found) > 25
    return found
