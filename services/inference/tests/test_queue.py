"""How what waits for the device becomes batches."""

import math
import threading
import time

from detserver.engine.queue import Batching, WorkQueue
from detserver.engine.work import Call, Request

A, B = ("a", "set"), ("b", "set")


def powers(waiting: int) -> int:
    return max(size for size in (1, 2, 4) if size <= waiting)


def queue(delay_s: float = 0.0, alive=lambda request, now: True) -> WorkQueue:
    return WorkQueue(lambda key: Batching(powers, 4, delay_s if key == A else 0.0), alive)


def request(key=A, deadline: float = math.inf) -> Request:
    return Request(key, None, deadline)


def put(work: WorkQueue, *items) -> list:
    for item in items:
        assert work.put(item)
    return list(items)


def test_batches_have_sizes_that_fit_and_the_order_of_arrival():
    work = queue()
    items = put(work, *(request() for _ in range(7)))
    assert [work.take(), work.take(), work.take()] == [items[:4], items[4:6], items[6:]]
    assert work.depth == 0


def test_what_belongs_together_is_taken_together_and_the_oldest_goes_first():
    work = queue()
    a1, b1, a2, b2 = put(work, request(A), request(B), request(A), request(B))
    assert work.take() == [a1, a2]
    assert work.take() == [b1, b2]


def test_a_call_runs_after_what_came_before_it():
    work = queue()
    a1, call, a2 = put(work, request(), Call(lambda: None), request())
    assert work.take() == [a1, a2]
    assert work.take() is call


def test_a_free_device_waits_for_more_but_not_where_others_can_run():
    work = queue(delay_s=0.3)
    a1, b1 = put(work, request(A), request(B))
    assert work.take() == [b1]
    start = time.perf_counter()
    assert work.take() == [a1]
    assert time.perf_counter() - start > 0.2
    full = put(work, *(request() for _ in range(4)))
    assert work.take() == full


def test_what_is_not_alive_is_dropped():
    work = queue(alive=lambda request, now: request.deadline > now)
    _, late = put(work, request(deadline=0.0), request())
    assert work.take() == [late]


def test_a_closed_queue_gives_back_what_waits_and_takes_nothing():
    work = queue()
    items = put(work, request(), request(B), Call(lambda: None))
    taken: list = []
    waiting = queue()
    thread = threading.Thread(target=lambda: taken.append(waiting.take()))
    thread.start()
    assert work.close() == items
    assert work.take() is None
    assert not work.put(request())
    waiting.close()
    thread.join(10)
    assert taken == [None]
