"""The stack as users change it: models, data and a password of their own, and a proxy in Docker's configuration."""

import base64
import json
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running_stack import PORTS, PROJECT, ROOT, SERVICES, Stack, eventually, photo
from safetensors.torch import save_file

from detserver.models.calibrate import calibrated_state_dict
from detserver.models.model_sets import ModelSpec

pytestmark = pytest.mark.timeout(900)

ARCHITECTURE = "tf_efficientdet_d0"
MODEL_SETS = f"""
[[model_sets.fishery.models]]
architecture = "{ARCHITECTURE}"
num_classes = 7
weights = "fish.safetensors"
name = "fish"

[[model_sets.fishery.models]]
architecture = "{ARCHITECTURE}"
num_classes = 7
weights = "fish.safetensors"
name = "the-same-fish"
"""
SETTINGS = {
    "MODEL_SET": "fishery",
    "AQUARIUM_URL": "http://files:8000/aquarium.zip",
    "GRAFANA_ADMIN_PASSWORD": "the first",
}
# Nobody listens there.
DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has who has cloned the repository, written .env, and put models into data/models."""
    root = tmp_path_factory.mktemp("user") / "detbench"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    write_settings(root, SETTINGS)
    weights = calibrated_state_dict(ModelSpec("fish", ARCHITECTURE, 7), seed=11)
    models = root / "data" / "models"
    save_file({name: value.contiguous() for name, value in weights.items()}, models / "fish.safetensors")
    (models / "fish.safetensors").chmod(0o644)  # safetensors lets its owner alone read it
    (models / "model_sets.toml").write_text(MODEL_SETS.replace("the-same-fish", "the-same-fish"))
    return root


@pytest.fixture(scope="module")
def own(images: None, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack of that checkout, with a dead proxy in the environment of every container."""
    configuration = tmp_path_factory.mktemp("docker")
    proxies = {"httpProxy": DEAD, "httpsProxy": DEAD, "noProxy": "files"}
    (configuration / "config.json").write_text(json.dumps({"proxies": {"default": proxies}}))
    plugins = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "cli-plugins"
    if plugins.is_dir():
        (configuration / "cli-plugins").symlink_to(plugins)
    stack = Stack(checkout, {"DOCKER_CONFIG": str(configuration)})
    try:
        stack.up(*SERVICES)
        yield stack
    finally:
        stack.down(check=False)


def write_settings(root: Path, settings: dict[str, str]) -> None:
    (root / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))


def test_a_model_set_of_ones_own_is_served_from_data_models(own: Stack):
    health = httpx.get(f"{server(own)}/health").json()
    fishery = next(model_set for model_set in health["model_sets"] if model_set["name"] == "fishery")
    assert [(model["model_name"], model["source"]) for model in fishery["models"]] == [
        ("fish", "local"),
        ("the-same-fish", "local"),
    ]
    answer = httpx.post(f"{server(own)}/infer/baseline", content=photo(), headers=JPEG, timeout=60).json()
    assert answer["model_set"] == "fishery"
    assert [each["model_name"] for each in answer["detections"]] == ["fish", "the-same-fish"]


def test_every_container_is_healthy_and_detbench_works_behind_a_dead_proxy(own: Stack):
    assert own.docker("exec", own.containers("inference")[0], "printenv", "http_proxy").stdout.strip() == DEAD
    compared = own.compose("run", "--rm", "-T", "compare", "--implementations", "baseline", "grouped")
    assert "passed" in compared.stdout
    own.compose("run", "--rm", "-T", "bench", "--implementations", "invalid", "--users", "1", "--duration", "3")
    eventually(lambda: own.value('sum(detbench_run_rps{implementation="invalid",model_set="fishery"})') > 0)
    own.swarm(users=2, implementation="invalid", model_set="fishery")
    eventually(lambda: own.value('sum(detbench_requests_total{outcome="success",model_set="fishery"})') > 0)
    own.stop()


def test_datasets_come_from_the_address_in_env_and_from_their_own_where_it_is_empty(own: Stack, tmp_path: Path):
    archive = zipfile.ZipFile(tmp_path / "aquarium.zip", "w")
    image = {"id": 0, "file_name": "fish.jpg", "width": 64, "height": 48}
    boxes = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "fish"}]}
    with archive:
        archive.writestr("test/fish.jpg", photo())
        archive.writestr("test/_annotations.coco.json", json.dumps(boxes))
    tmp_path.chmod(0o755)  # the container is another user
    network = ("--network", f"{PROJECT}_default", "--network-alias", "files")
    command = ("python", "-m", "http.server", "--directory", "/files", "8000")
    files = own.docker(
        *("run", "--rm", "--detach", *network, "-v", f"{tmp_path}:/files:ro,z", "--entrypoint", command[0]),
        *("detbench:local", *command[1:]),
    ).stdout.strip()
    try:
        fetched = own.compose("run", "--rm", "-T", "datasets", "roboflow_aquarium", check=False)
        assert "roboflow_aquarium: 1 images" in fetched.stdout, fetched.stderr
    finally:
        own.docker("kill", files)
    refused = own.compose("run", "--rm", "-T", "datasets", "coco_val2017", check=False)
    assert refused.returncode == 2
    assert "images.cocodataset.org/zips/val2017.zip cannot be fetched" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_new_password_for_grafana_counts_from_the_next_start(own: Stack, checkout: Path):
    eventually(lambda: admin("the first") == 200)
    write_settings(checkout, SETTINGS | {"GRAFANA_ADMIN_PASSWORD": "the second"})
    own.up("grafana")
    eventually(lambda: admin("the second") == 200)
    assert admin("the first") == 401


def test_a_stopped_server_answers_what_it_has_accepted(own: Stack):
    statuses: list[int] = []
    body = photo()
    # `detbench run --host`, of an earlier test, unloaded it.
    httpx.post(f"{server(own)}/implementations/baseline/load", timeout=120).raise_for_status()
    # Nobody is refused, however slow a busy machine made the requests before.
    patient = JPEG | {"X-Deadline-Ms": "120000"}

    def send() -> None:
        statuses.append(
            httpx.post(f"{server(own)}/infer/baseline", content=body, headers=patient, timeout=120).status_code
        )

    clients = [threading.Thread(target=send) for _ in range(12)]
    for client in clients:
        client.start()
    eventually(lambda: own.value("detserver_queue_depth") > 4, within_s=20)
    own.docker("stop", own.containers("inference")[0])
    for client in clients:
        client.join()
    assert statuses == [200] * len(clients)


def server(stack: Stack) -> str:
    return f"http://{stack.address('inference')}:8000"


def admin(password: str) -> int:
    credentials = base64.b64encode(f"admin:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}"}
    return httpx.get(f"http://127.0.0.1:{PORTS['GRAFANA_PORT']}/api/user", headers=headers).status_code


JPEG = {"Content-Type": "image/jpeg"}
