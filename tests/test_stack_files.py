"""The files of the stack, without an engine: compose files, .env.example, serve configurations, the scripts."""

import csv
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from detserver.settings import Settings

ROOT = Path(__file__).parents[1]


class ComposeLoader(yaml.SafeLoader):
    """Reads what Compose tags with !reset and !override as if it were not tagged."""


def untagged(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> object:
    return loader.construct_mapping(node) if isinstance(node, yaml.MappingNode) else loader.construct_sequence(node)


ComposeLoader.add_multi_constructor("!", untagged)

COMPOSE_TEXT = (ROOT / "compose.yaml").read_text()
RAY_TEXT = (ROOT / "compose.ray.yaml").read_text()
SERVICES = yaml.safe_load(COMPOSE_TEXT)["services"]
RAY_SERVICES = yaml.load(RAY_TEXT, ComposeLoader)["services"]
ALL_SERVICES = [*SERVICES.items(), *RAY_SERVICES.items()]

Program = Callable[..., Path]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Put a shell script of a name into a folder of its own, `tmp_path / "bin"`."""

    def put(name: str, *lines: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return path

    return put


# ── DCGM exporter ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_line_of_the_counters_has_three_fields_as_a_csv_reader_sees_them():
    lines = (ROOT / "prometheus" / "dcgm" / "counters.csv").read_text().splitlines()
    # As Go's encoding/csv in the exporter: lines that begin with # are comments, quotes only around whole fields.
    rows = list(csv.reader([line for line in lines if not line.startswith("#")], strict=True))
    assert len(rows) > 10
    for row in rows:
        field, kind, text = row
        assert re.fullmatch(r"DCGM_FI_(DEV|PROF)_[A-Z_]+", field)
        assert kind.strip() in {"gauge", "counter"}
        assert text.strip()
        assert '"' not in text


# ── compose.yaml and .env.example ─────────────────────────────────────────────────────────────────────────────────


def offered() -> dict[str, str]:
    """Variables of .env.example with the values that they have when their lines are uncommented."""
    return dict(re.findall(r"^#([A-Z][A-Z_]*)=(.*)$", (ROOT / ".env.example").read_text(), re.M))


def interpolated() -> dict[str, str]:
    """Variables of the compose files with their defaults."""
    return dict(re.findall(r"(?<!\$)\$\{([A-Z_]+):-([^}]*)\}", COMPOSE_TEXT + RAY_TEXT))


def test_what_env_example_offers_is_what_compose_uses_with_the_same_defaults():
    defaults = interpolated()
    del defaults["REVISION"]  # the Makefile's
    assert {name: value or defaults[name] for name, value in offered().items()} == defaults
    assert re.findall(r"\$\{[A-Z_]+(?!:[-+]|[A-Z_])", COMPOSE_TEXT + RAY_TEXT) == []


def environments() -> Iterator[tuple[str, str]]:
    """(service, variable) of what Compose passes to our programs."""
    for name, service in ALL_SERVICES:
        for variable in service.get("environment", {}):
            if re.match(r"DETSERVER_|DETBENCH_|BENCHMARK_", variable):
                yield name, variable


def test_every_variable_that_compose_passes_is_read_by_the_program():
    settings = {f"DETSERVER_{name.upper()}" for name in Settings.model_fields}
    sources = "".join(path.read_text() for path in (ROOT / "services" / "bench" / "src").rglob("*.py"))
    read = settings | set(re.findall(r"(?:DETBENCH|BENCHMARK)_[A-Z_]+", sources))
    # Locust's options are named by their parts: BENCHMARK_ and the name of the option.
    read |= {f"BENCHMARK_{name.replace('-', '_').upper()}" for name in re.findall(r"--([a-z-]+)", sources)}
    passed = set(environments())
    assert len(passed) > 10
    assert {(service, variable) for service, variable in passed if variable not in read} == set()


def test_a_container_of_an_selinux_host_may_read_what_it_mounts():
    mounts = [mount for _, service in ALL_SERVICES for mount in service.get("volumes", [])]
    ours = [mount for mount in mounts if mount.startswith((".", "${"))]
    assert len(ours) > 8
    for mount in ours:
        assert mount.split(":")[-1] in {"z", "ro,z", "z}"}, mount


def test_a_bind_mount_is_of_a_file_that_a_checkout_has():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for _, service in ALL_SERVICES:
        for source in (mount.split(":")[0] for mount in service.get("volumes", []) if mount.startswith(".")):
            name = source.removeprefix("./")
            assert any(path == name or path.startswith(f"{name}/") for path in tracked), source


def test_healthchecks_ask_no_proxy():
    dockerfiles = [path.read_text() for path in (ROOT / "services").glob("*/Dockerfile")]
    checks = [json.dumps(service["healthcheck"]) for _, service in ALL_SERVICES if "healthcheck" in service]
    checks += [found for text in dockerfiles for found in re.findall(r"^HEALTHCHECK(?:.*\\\n)*.*", text, re.M)]
    assert len(checks) >= 7
    for check in checks:
        assert "urllib" not in check
        assert "wget" not in check or re.search(r"-Y\W+off", check), check


def test_compose_waits_longer_for_the_server_than_the_server_for_its_requests():
    inference = SERVICES["inference"]
    limit = inference["environment"]["DETSERVER_DRAIN_LIMIT_S"]
    assert inference["stop_grace_period"] == f"{limit}s10s"
    assert limit == f"${{DRAIN_LIMIT_S:-{Settings().drain_limit_s:g}}}"


# ── Ray ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def serve_config() -> Any:
    return yaml.safe_load((ROOT / "services" / "inference" / "serve_config.yaml").read_text())


def with_defaults(text: str) -> str:
    """As Compose interpolates it without a .env."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


def test_the_stack_deploys_the_serve_configuration_but_for_its_address_and_what_the_stack_is_for():
    deployed = yaml.safe_load(with_defaults(RAY_SERVICES["inference"]["environment"]["SERVE_CONFIG"]))
    expected = serve_config()
    expected["proxy_location"] = "HeadOnly"
    expected["http_options"]["host"] = "0.0.0.0"
    # The reference is baseline's.
    expected["applications"][0]["args"] = {"implementation": "baseline", "model_set": "mixed"}
    assert deployed == expected


def test_kubernetes_deploys_the_serve_configuration_but_for_its_address():
    manifest = yaml.safe_load((ROOT / "kubernetes" / "rayservice.yaml").read_text())
    expected = serve_config()
    expected["http_options"]["host"] = "0.0.0.0"
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"]) == expected


def test_ray_serve_knows_every_key_of_the_serve_configuration():
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
    config = schema.ServeDeploySchema.model_validate(serve_config())
    # Unknown keys are ignored.
    assert without_unset(serve_config(), config.model_dump(exclude_unset=True)) == serve_config()
    (application,) = config.applications
    assert application.import_path == "detserver.cluster:application"
    assert application.deployment_names == ["Replica"]


def without_unset(given: Any, parsed: Any) -> Any:
    """What of `given` the schema has kept."""
    if isinstance(given, dict):
        return {key: without_unset(value, parsed[key]) for key, value in given.items() if key in parsed}
    if isinstance(given, list):
        return [without_unset(*pair) for pair in zip(given, parsed, strict=True)]
    return parsed


def test_no_port_of_ray_is_published():
    for name in ("inference", "ray-worker", "prometheus"):
        assert not RAY_SERVICES[name].get("ports")
    assert [port.rsplit(":", 1)[-1] for port in SERVICES["inference"]["ports"]] == ["8000"]


# ── scripts/compose-files ─────────────────────────────────────────────────────────────────────────────────────────

WITH_GPU, WITHOUT = "-f compose.yaml", "-f compose.yaml -f compose.cpu.yaml"
DRIVER = ('echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)"',)
RUNTIME = ("""echo '{"Runtimes":{"nvidia":{"path":"nvidia-container-runtime"},"runc":{"path":"runc"}}}'""",)
NO_RUNTIME = ("""echo '{"Runtimes":{"runc":{"path":"runc"}},"Name":"nvidia"}'""",)


@pytest.mark.parametrize(
    ("nvidia_smi", "docker", "files", "line"),
    [
        (DRIVER, RUNTIME, WITH_GPU, "stack with the GPU: GPU 0: NVIDIA H100"),
        (DRIVER, ("""echo '{"DiscoveredDevices":[{"ID":"nvidia.com/gpu=0"}]}'""",), WITH_GPU, "stack with the GPU"),
        (DRIVER, NO_RUNTIME, WITHOUT, "install NVIDIA's container toolkit"),
        (DRIVER, ("echo cannot connect; exit 1",), WITHOUT, "Docker cannot use the one here"),
        (("echo 'NVIDIA-SMI has failed to talk'; exit 9",), RUNTIME, WITHOUT, "has failed to talk); mend the driver"),
        (("echo 'No devices were found'",), RUNTIME, WITHOUT, "finds none (No devices were found)"),
        (None, RUNTIME, WITHOUT, "there is no nvidia-smi"),
    ],
)
def test_the_stack_uses_the_gpu_where_its_driver_answers_and_docker_can_hand_it_on(
    program: Program, nvidia_smi: tuple[str, ...] | None, docker: tuple[str, ...], files: str, line: str
):
    folder = program("docker", *docker).parent
    if nvidia_smi is not None:
        program("nvidia-smi", *nvidia_smi)
    environment = os.environ | {"PATH": f"{folder}:/usr/bin:/bin"}
    script = ROOT / "scripts" / "compose-files"
    explained = subprocess.run([script, "--explain"], env=environment, capture_output=True, text=True)
    assert (explained.returncode, explained.stdout) == (0, f"{files}\n")
    assert line in explained.stderr
    assert explained.stderr.count("\n") == 1
    silent = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert (silent.stdout, silent.stderr) == (f"{files}\n", "")
    cluster = subprocess.run([script], env=environment | {"RAY": "1"}, capture_output=True, text=True)
    gpus = " -f compose.ray.gpu.yaml" if files == WITH_GPU else ""
    assert cluster.stdout == f"{files} -f compose.ray.yaml{gpus}\n"


# ── grafana/start.sh ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("has_database", "password", "server_gets", "reset_to"),
    [(False, "first", "first", None), (True, "second", "", "second"), (True, "", "", None), (False, "", None, None)],
)
def test_grafana_takes_the_password_at_every_start(
    program: Program,
    tmp_path: Path,
    has_database: bool,
    password: str,
    server_gets: str | None,
    reset_to: str | None,
):
    log = tmp_path / "log"
    folder = program("grafana", f'echo "cli $*:$(cat)" >> {log}').parent
    server = program("run.sh", f'echo "server:${{GF_SECURITY_ADMIN_PASSWORD:-}}" >> {log}')
    database = tmp_path / "grafana.db"
    if has_database:
        database.touch()
    script = (ROOT / "grafana" / "start.sh").read_text()
    assert "/var/lib/grafana/grafana.db" in script
    script = script.replace("/var/lib/grafana/grafana.db", str(database)).replace("/run.sh", str(server))
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "GRAFANA_ADMIN_PASSWORD": password}
    subprocess.run(["sh", "-c", script], env=environment, check=True)
    *resets, started = log.read_text().splitlines()
    assert [line.split(":")[1] for line in resets] == ([] if reset_to is None else [reset_to])
    assert started.startswith("server:")
    given = started.removeprefix("server:")
    assert len(given) > 20 if server_gets is None else given == server_gets
