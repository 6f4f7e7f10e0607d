"""Who is taken in: as many as there are places, and nobody who would miss a deadline."""

import math
import time
from contextlib import ExitStack

import pytest

from detserver.engine.admission import Admission
from detserver.errors import DeadlineTooNear, QueueFull

KEY, OTHER = ("baseline", "mixed"), ("fastest", "mixed")


def in_s(seconds: float) -> float:
    return time.perf_counter() + seconds


def admission_of(places: int = 9, threads: int = 1, most_bytes: int = 100) -> Admission:
    return Admission(places, threads, most_bytes)


def test_places_end_at_the_limit_and_come_back():
    admission = admission_of(places=2)
    with admission.place(KEY, math.inf), admission.place(OTHER, math.inf):
        with pytest.raises(QueueFull, match="2 requests are in work already"), admission.place(KEY, math.inf):
            pass
        with pytest.raises(QueueFull):
            admission.check(KEY, math.inf)
    with admission.place(KEY, math.inf):
        pass


def test_who_waits_for_a_load_takes_no_place_and_keeps_nobody_else_out():
    admission = admission_of(places=1)
    with admission.loading(KEY):
        with (
            pytest.raises(QueueFull, match="wait until baseline is loaded for mixed"),
            admission.loading(KEY),
        ):
            pass
        with admission.loading(OTHER), admission.place(OTHER, math.inf):
            pass
    with admission.loading(KEY):
        pass


def test_bodies_are_bounded_by_their_bytes_not_by_their_number():
    admission = admission_of(most_bytes=100)
    with ExitStack() as clients:
        slow = [clients.enter_context(admission.body()) for _ in range(50)]
        for hold in slow:
            hold(1)
        slow[0](50)
        with pytest.raises(QueueFull, match="bodies are being received"):
            slow[1](1)
    with admission.body() as hold:
        hold(100)


def test_what_would_miss_its_deadline_is_refused_at_once_and_told_when_to_come_back():
    admission = admission_of(threads=2)
    admission.note_device(KEY, 2.0)
    admission.note_device(OTHER, 0.5)
    with admission.place(KEY, in_s(10)), admission.place(OTHER, in_s(10)):
        # 2.5 s of the device before it, and 2 of its own, with half as much again to be sure.
        with pytest.raises(DeadlineTooNear, match=r"about 6.8 s, and its deadline is in 6 s") as refused:
            admission.check(KEY, in_s(6))
        assert refused.value.retry_after_s == 7
        admission.check(KEY, in_s(7))
        admission.check(OTHER, in_s(5))


def test_decoding_counts_by_the_threads_that_do_it():
    admission = admission_of(threads=2)
    admission.note_preparing(1.0)
    assert admission.expected_s(KEY) == 1.5
    with admission.place(KEY, math.inf), admission.place(KEY, math.inf):
        assert admission.expected_s(KEY) == 3.0


def test_what_is_expected_follows_what_was_measured():
    admission = admission_of()
    assert admission.expected_s(KEY) == 0.0
    for _ in range(50):
        admission.note_device(KEY, 3.0)
    assert admission.device_s(KEY) == pytest.approx(3.0)
    for _ in range(50):
        admission.note_device(KEY, 1.0)
    assert admission.device_s(KEY) == pytest.approx(1.0, rel=1e-3)
