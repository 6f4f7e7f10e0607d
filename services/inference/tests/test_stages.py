"""The stages of a request add up to the time that the server takes for it."""

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer
from starlette.types import Message, Receive, Scope, Send

from detserver.http.routes import create_app
from detserver.http.stages import STAGES, Stages
from detserver.implementations.base import BaseModelImpl, DetectionOutput
from detserver.preprocess import PreparedImage
from detserver.settings import Settings

USERS, REQUESTS = 8, 25


def test_a_stage_begins_where_the_one_before_it_ended():
    stages = Stages(started=100.0)
    for stage, at in (("receive", 101.0), ("wait", 101.5), ("queue", 104.5)):
        stages.end(stage, at)
    assert stages.seconds == {"receive": 1.0, "wait": 0.5, "queue": 3.0}
    assert stages.total_s == sum(stages.seconds.values())


def load(url: str, photo: Path) -> list[tuple[dict, float]]:
    """Answers of `USERS` users that ask at the same time, each with what its client saw, ms."""
    data = photo.read_bytes()

    def ask(_: int) -> list[tuple[dict, float]]:
        answers = []
        with httpx.Client(timeout=60) as client:
            for _ in range(REQUESTS):
                start = time.perf_counter()
                answer = client.post(url, files={"file": data}).raise_for_status()
                answers.append((answer.json(), 1e3 * (time.perf_counter() - start)))
        return answers

    with ThreadPoolExecutor(USERS) as users:
        return [answer for answers in users.map(ask, range(USERS)) for answer in answers]


def sums_s(url: str, implementation: str) -> tuple[dict[str, float], float]:
    """Sums of the histograms: of each stage, and of whole requests."""
    stages, whole = dict.fromkeys(STAGES, 0.0), 0.0
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            if sample.labels.get("implementation") != implementation:
                continue
            if sample.name == "detserver_stage_duration_seconds_sum":
                stages[sample.labels["stage"]] = sample.value
            if sample.name == "detserver_request_duration_seconds_sum":
                whole += sample.value
    return stages, whole


def assert_that_they_add_up(url: str, implementation: str, photo: Path) -> list[dict]:
    """Load it; the answers."""
    stages_before, whole_before = sums_s(url, implementation)
    answers = load(f"{url}/infer/{implementation}", photo)
    stages_after, whole_after = sums_s(url, implementation)
    whole_s = whole_after - whole_before
    of_histograms_s = sum(stages_after[stage] - stages_before[stage] for stage in STAGES)
    of_answers_s = sum(sum(answer["timings_ms"].values()) for answer, _ in answers) / 1e3
    # Only rounding of floats is between them.
    assert of_histograms_s == pytest.approx(whole_s, abs=1e-6)
    assert of_answers_s == pytest.approx(whole_s, abs=1e-6)
    for answer, client_ms in answers:
        assert tuple(answer["timings_ms"]) == STAGES
        assert all(ms >= 0 for ms in answer["timings_ms"].values())
        assert sum(answer["timings_ms"].values()) < client_ms
    return [answer for answer, _ in answers]


def test_the_stages_of_a_server_under_load_add_up(server: RunningServer, photos: list[Path]):
    assert_that_they_add_up(server.url, "invalid", photos[3])


class Batching(BaseModelImpl):
    """Takes 20 ms for the forward pass of a batch and 10 ms for the rest, which no stage counts."""

    name = "batching"
    description = "for the tests"
    exact = False
    max_batch_size = 4

    def load(self) -> None:
        pass

    def predict(self, image: PreparedImage) -> list[DetectionOutput]:
        raise NotImplementedError

    def predict_batch(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        with self.stage("forward"):
            time.sleep(0.02)
        time.sleep(0.01)
        box, score, label = np.zeros((1, 4), np.float32), np.array([0.5], np.float32), np.array([1])
        output = [DetectionOutput(spec.name, box, score, label) for spec in self.model_set.models]
        return [output] * len(images)


class Clock:
    """Measures from outside of the application how long it takes from the headers to the begin of the answer."""

    def __init__(self, app: object) -> None:
        self.app = app
        self.ms: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"].startswith("/infer"):
                self.ms.append(1e3 * (time.perf_counter() - start))
            await send(message)

        await self.app(scope, receive, noting)


@pytest.fixture
def batching(monkeypatch, data_dir: Path) -> Iterator[tuple[str, Clock]]:
    """URL of a server in this process that can run `Batching`, and its clock."""
    monkeypatch.setattr(
        "detserver.implementations.entry_points",
        lambda group: [EntryPoint("batching", f"{__name__}:Batching", group)],
    )
    clock = Clock(create_app(Settings(preload=["batching"], data_dir=data_dir, weights_download=False)))
    running = uvicorn.Server(uvicorn.Config(clock, port=0, log_config=None))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    while not httpx.get(f"{url}/ready").is_success:
        time.sleep(0.05)
    yield url, clock
    running.should_exit = True
    thread.join()


def test_the_stages_of_batches_add_up_to_what_a_clock_outside_of_the_application_says(batching, photos: list[Path]):
    url, clock = batching
    answers = assert_that_they_add_up(url, "batching", photos[3])
    assert max(answer["batch_size"] for answer in answers) > 1
    for answer in answers:
        assert answer["timings_ms"]["forward"] >= 20
        assert answer["timings_ms"]["postprocess"] >= 10
    # In the median: now and then a thread takes the interpreter away between the two clocks.
    sums = sorted(sum(answer["timings_ms"].values()) for answer in answers)
    assert statistics.median(abs(a - b) for a, b in zip(sums, sorted(clock.ms), strict=True)) < 1
