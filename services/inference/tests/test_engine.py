"""The engine with implementations of the tests' own, in this process."""

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from detserver.engine import engine as engine_module
from detserver.engine import loaded as loaded_module
from detserver.engine.admission import Admission
from detserver.engine.engine import Engine
from detserver.engine.work import Answer
from detserver.errors import (
    CannotRun,
    DeadlineMissed,
    DeviceFailed,
    InferenceFailed,
    NotLoaded,
    NotReady,
    OutOfMemory,
)
from detserver.implementations import Registry
from detserver.implementations.base import BaseModelImpl, DetectionOutput
from detserver.models.model_sets import ModelSet, ModelSpec
from detserver.models.weights import WeightsStore
from detserver.preprocess import PreparedImage, prepare

SET = ModelSet("one", (ModelSpec("d0", "tf_efficientdet_d0", 90),))


class Batching(BaseModelImpl):
    """Answers the width of the image as its score; waits for `go` before the first batch."""

    name = "batching"
    description = "for the tests"
    exact = False
    max_batch_size = 4
    go = threading.Event()
    batches: list[int] = []  # noqa: RUF012

    def prepare(self) -> None:
        pass

    def load(self) -> None:
        self.batches.clear()

    def predict(self, image: PreparedImage) -> list[DetectionOutput]:
        box = np.array([[0, 0, 1, 1]], dtype=np.float32)
        score = np.array([image.width / 1000], dtype=np.float32)
        return [DetectionOutput("d0", box, score, np.array([1]))]

    def predict_batch(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        self.go.wait(10)
        self.batches.append(len(images))
        return super().predict_batch(images)


class Broken(Batching):
    name = "broken"
    error: BaseException = RuntimeError("a bug")

    def predict_batch(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        raise self.error


class FailsOnce(Batching):
    name = "fails-once"
    failed = False

    def predict_batch(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        if not self.failed:
            type(self).failed = True
            self.count("forward", 1000.0)
            raise RuntimeError("in the middle")
        with self.stage("forward"):
            return super().predict_batch(images)


class Particular(Batching):
    name = "particular"

    @classmethod
    def unsupported_reason(cls, model_set: ModelSet) -> str | None:
        return "it has one model"


class NotANumber(Batching):
    name = "nan"
    max_batch_size = 1

    def predict(self, image: PreparedImage) -> list[DetectionOutput]:
        return [DetectionOutput("d0", np.full((1, 4), np.nan), np.array([0.5]), np.array([1]))]


class LittleMemory(Batching):
    """Has memory for two images."""

    name = "little-memory"

    def predict_batch(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        if len(images) > 2:
            self.batches.append(-len(images))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")
        return super().predict_batch(images)


class OneBadImage(Batching):
    """Fails where an image is 13 pixels wide."""

    name = "one-bad-image"

    def predict_batch(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
        found = super().predict_batch(images)
        if any(image.width == 13 for image in images):
            raise ValueError("thirteen")
        return found


class Other(Batching):
    name = "other"


class Patient(Batching):
    """Waits for a full batch for longer than the tests take."""

    name = "patient"
    max_queue_delay_ms = 60_000.0


class SlowLoad(Batching):
    """Loads until it is let."""

    name = "slow-load"
    begun = threading.Event()
    may_end = threading.Event()

    def load(self) -> None:
        self.begun.set()
        assert self.may_end.wait(30)


class BrokenLoad(Batching):
    name = "broken-load"

    def load(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")


def image(width: int) -> PreparedImage:
    return prepare(Image.new("RGB", (width, 10)), SET.inputs)


@pytest.fixture
def engine(tmp_path: Path):
    Batching.go.clear()
    store = WeightsStore(tmp_path, tmp_path, seed=0, allow_download=False)
    running = Engine(Registry(), store, torch.device("cpu"), Admission(places=3, threads=1, most_bytes=1))
    running.start()
    yield running
    Batching.go.set()
    running.stop()


async def infer(engine: Engine, width: int, implementation=Batching, deadline: float = math.inf) -> Answer:
    await engine.ready(implementation, SET)
    return await engine.infer((implementation.name, SET.name), image(width), deadline)


async def gather(engine: Engine, widths: Sequence[int], *implementations) -> list[Answer | BaseException]:
    """Ask for the first, and for the others while it is in work; of several implementations in turn."""
    implementations = implementations or (Batching,)
    for each in implementations:
        await asyncio.gather(engine.ready(each, SET), return_exceptions=True)
    asked = []
    for number, width in enumerate(widths):
        asked.append(asyncio.create_task(infer(engine, width, implementations[number % len(implementations)])))
        await asyncio.sleep(0.1)
    Batching.go.set()
    return await asyncio.gather(*asked, return_exceptions=True)


def widths_of(answers: Sequence[Answer]) -> list[int]:
    return [round(1000 * float(answer.outputs[0].scores[0])) for answer in answers]


def test_what_waits_is_run_as_one_batch_and_each_gets_its_own_answer(engine: Engine):
    widths = [100, 200, 300, 400, 500, 600]
    answers = asyncio.run(gather(engine, widths))
    assert Batching.batches == [1, 4, 1]
    assert [answer.batch_size for answer in answers] == [1, 4, 4, 4, 4, 1]
    assert widths_of(answers) == widths
    assert all(0 <= answer.forward_s <= answer.ended - answer.started for answer in answers)


@pytest.mark.parametrize(
    ("error", "answer", "text"),
    [
        (RuntimeError("a bug"), InferenceFailed, "RuntimeError: a bug"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), OutOfMemory, "CUDA out of memory"),
    ],
)
def test_a_failure_is_the_answer_of_its_batch_alone(engine: Engine, error, answer, text: str):
    Broken.error = error
    failed = asyncio.run(gather(engine, [1, 2], Broken))
    assert {type(each) for each in failed} == {answer}
    assert text in str(failed[0])
    assert len(asyncio.run(gather(engine, [100]))[0].outputs) == 1


def test_what_nobody_waits_for_any_more_is_not_run(engine: Engine):
    async def ask_and_give_up() -> None:
        asked = []
        for width in (100, 200, 300):
            asked.append(asyncio.create_task(infer(engine, width)))
            await asyncio.sleep(0.1)
        asked[1].cancel()
        await asyncio.sleep(0.1)
        Batching.go.set()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(ask_and_give_up())
    assert Batching.batches == [1, 1]


def test_the_stages_of_a_batch_that_failed_are_not_those_of_the_next(engine: Engine):
    Batching.go.set()
    FailsOnce.failed = False
    assert isinstance(asyncio.run(gather(engine, [1], FailsOnce))[0], InferenceFailed)
    (answer,) = asyncio.run(gather(engine, [1], FailsOnce))
    assert answer.forward_s < 1000


def test_a_whole_batch_is_timed_as_often_as_asked_after_one_that_does_not_count(engine: Engine):
    Batching.go.set()
    times = asyncio.run(engine.time(Batching, SET, image(1), batch_size=3, repeats=4, limit_s=60))
    assert len(times) == 4
    assert Batching.batches == [3] * 5
    assert len(asyncio.run(engine.time(Batching, SET, image(1), batch_size=1, repeats=100, limit_s=0))) == 1


def test_a_nan_is_never_answered(engine: Engine):
    (failed,) = asyncio.run(gather(engine, [1], NotANumber))
    assert isinstance(failed, InferenceFailed)
    assert "NaN" in str(failed)


def test_a_load_that_fails_leaves_nothing_loaded(engine: Engine):
    with pytest.raises(OutOfMemory, match="unload another"):
        asyncio.run(engine.load(BrokenLoad, SET))
    assert engine.loaded == []


def test_what_cannot_run_is_refused_before_it_waits(engine: Engine):
    with pytest.raises(CannotRun, match="particular cannot run one: it has one model"):
        asyncio.run(infer(engine, 1, Particular))


def test_what_waits_when_the_server_ends_is_answered(engine: Engine):
    async def ask_and_stop() -> list:
        asked = []
        for width in range(1, 9):
            asked.append(asyncio.create_task(infer(engine, width)))
            await asyncio.sleep(0.1)
        asked.pop(3).cancel()
        stopping = asyncio.create_task(asyncio.to_thread(engine.stop))
        await asyncio.sleep(0.1)
        Batching.go.set()
        await stopping
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask_and_stop())
    assert isinstance(answers[0], Answer)
    assert {type(each) for each in answers[1:]} == {NotReady}


def test_where_the_device_is_broken_everything_is_answered_with_the_reason_and_nothing_runs_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told: list[str] = []
    store = WeightsStore(tmp_path, tmp_path, seed=0, allow_download=False)
    engine = Engine(Registry(), store, torch.device("cpu"), Admission(9, 1, 1), on_device_failure=told.append)
    engine.start()
    Batching.go.set()
    monkeypatch.setattr(engine_module, "why_broken", lambda _: "CUDA error: unspecified launch failure")

    class Sticky(Broken):
        def predict_batch(self, images: Sequence[PreparedImage]) -> list[list[DetectionOutput]]:
            Batching.batches.append(len(images))
            while engine.depth < 2:
                pass
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    async def ask() -> list:
        await engine.load(Batching, SET)
        await engine.load(Sticky, SET)
        asked = [infer(engine, 1, each) for each in (Sticky, Batching, Batching)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return [*answers, *await asyncio.gather(infer(engine, 1), return_exceptions=True)]

    answers = asyncio.run(ask())
    assert [type(answer) for answer in answers] == [DeviceFailed] * 4
    assert {str(answer) for answer in answers} == {*told}
    assert len(told) == 1
    assert told[0].endswith("CUDA error: unspecified launch failure")
    assert Batching.batches == [1]
    assert engine.device_failed
    engine.stop()


class Clock:
    """In place of the module `time`: stands still but for what is said to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_what_is_shared_is_made_before_the_clock_of_a_load_starts(
    engine: Engine, store: WeightsStore, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    monkeypatch.setattr(loaded_module, "time", clock)
    monkeypatch.setattr(engine._loaded, "_weights", store)
    monkeypatch.setattr(loaded_module, "use_libraries", lambda _: setattr(clock, "now", clock.now + 1000))
    monkeypatch.setattr(store, "get", lambda _: setattr(clock, "now", clock.now + 100))

    class First(Batching):
        name = "first"
        makes: ClassVar[list[str]] = []

        def prepare(self) -> None:
            BaseModelImpl.prepare(self)
            if not self.makes:  # a converted file, for example
                self.makes.append(self.name)
                clock.now += 10

        def load(self) -> None:
            clock.now += 1

    class Second(First):
        name = "second"

    for order in ((First, Second), (Second, First)):
        First.makes.clear()
        for each in order:
            assert asyncio.run(engine.load(each, SET)).load_s == 1
            assert asyncio.run(engine.unload(each, SET))


def test_an_implementation_is_told_before_it_is_unloaded(engine: Engine):
    class Ordered(Batching):
        name = "ordered"
        told: ClassVar[list[str]] = []

        def unload(self) -> None:
            self.told.append("unload")

    asyncio.run(engine.load(Ordered, SET))
    asyncio.run(engine.unload(Ordered, SET))
    asyncio.run(engine.load(Ordered, SET))
    engine.stop()
    assert Ordered.told == ["unload", "unload"]


def test_what_waits_runs_together_also_where_others_came_in_between(engine: Engine):
    answers = asyncio.run(gather(engine, [100, 200, 300, 400, 500, 600], Batching, Other))
    assert widths_of(answers) == [100, 200, 300, 400, 500, 600]
    # 200 and 400 of the other one wait, and 600; 300 and 500 of the first.
    assert [answer.batch_size for answer in answers] == [1, 3, 2, 3, 2, 3]


def test_a_batch_that_lacks_memory_is_run_in_halves(engine: Engine):
    answers = asyncio.run(gather(engine, [100, 200, 300, 400, 500], LittleMemory))
    assert widths_of(answers) == [100, 200, 300, 400, 500]
    assert Batching.batches == [1, -4, 2, 2]


def test_an_image_that_makes_a_batch_fail_fails_alone(engine: Engine):
    answers = asyncio.run(gather(engine, [100, 200, 13, 300, 400], OneBadImage))
    assert isinstance(answers.pop(2), InferenceFailed)
    assert widths_of(answers) == [100, 200, 300, 400]


def test_a_free_device_waits_for_a_full_batch_as_long_as_it_is_told_to(engine: Engine):
    Batching.go.set()
    answers = asyncio.run(gather(engine, [100, 200, 300, 400], Patient))
    assert [answer.batch_size for answer in answers] == [4] * 4


def test_the_settings_of_batches_go_before_those_of_the_implementation(tmp_path: Path):
    store = WeightsStore(tmp_path, tmp_path, seed=0, allow_download=False)
    cpu = torch.device("cpu")
    engine = Engine(Registry(), store, cpu, Admission(9, 1, 1), {"patient": 2}, {"patient": 0.0})
    engine.start()
    Batching.go.clear()
    answers = asyncio.run(gather(engine, [100, 200, 300, 400], Patient))
    engine.stop()
    assert [answer.batch_size for answer in answers] == [1, 2, 2, 1]


def test_what_is_loaded_is_served_while_something_else_is_loading(engine: Engine):
    SlowLoad.begun.clear()
    SlowLoad.may_end.clear()

    async def ask() -> list:
        Batching.go.set()
        await engine.load(Batching, SET)
        waiting = [asyncio.create_task(infer(engine, width, SlowLoad)) for width in (100, 200)]
        await asyncio.to_thread(SlowLoad.begun.wait, 10)
        served = await infer(engine, 300)
        waiting.pop().cancel()  # who gives up keeps nobody else from waiting
        assert engine.loaded == [("batching", "one")]
        SlowLoad.may_end.set()
        return [served, *await asyncio.gather(*waiting)]

    assert widths_of(asyncio.run(ask())) == [300, 100]


def test_what_was_unloaded_is_loaded_by_nobody_who_only_asks(engine: Engine):
    Batching.go.set()

    async def ask() -> list[int]:
        before = await infer(engine, 100)
        assert await engine.unload(Batching, SET)
        with pytest.raises(NotLoaded, match="batching was unloaded for one: POST /implementations/batching/load"):
            await infer(engine, 100)
        assert engine.loaded == []
        await engine.load(Batching, SET)
        return widths_of([before, await infer(engine, 200)])

    assert asyncio.run(ask()) == [100, 200]


def test_what_cannot_be_answered_by_its_deadline_is_not_run(engine: Engine):
    async def ask() -> list:
        await engine.ready(Batching, SET)
        asked = [asyncio.create_task(infer(engine, 100))]
        await asyncio.sleep(0.1)
        asked += [asyncio.create_task(infer(engine, 200, deadline=time.perf_counter() + 0.1))]
        await asyncio.sleep(0.3)
        Batching.go.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    answered, missed = asyncio.run(ask())
    assert widths_of([answered]) == [100]
    assert isinstance(missed, DeadlineMissed)
    assert Batching.batches == [1]
    assert engine.images == {("batching", "one"): 1}


def test_who_has_given_up_breaks_neither_a_batch_that_fails_nor_the_end(engine: Engine):
    Broken.error = RuntimeError("a bug")

    async def give_up() -> None:
        await engine.ready(Batching, SET)
        await engine.ready(Broken, SET)
        first = asyncio.create_task(infer(engine, 100))
        await asyncio.sleep(0.1)
        asked = [asyncio.create_task(infer(engine, width, Broken)) for width in (100, 200, 300)]
        await asyncio.sleep(0.1)
        asked[0].cancel()
        Batching.go.set()
        asked[2].cancel()
        await asyncio.gather(first, *asked, return_exceptions=True)

    asyncio.run(give_up())
    assert widths_of(asyncio.run(gather(engine, [100]))) == [100]
    assert engine.stop(10)
