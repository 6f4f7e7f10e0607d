"""A server that is asked for more than it can do answers what it has taken in, and refuses the rest at once."""

import asyncio
import signal
import time
from pathlib import Path

import httpx
import pytest
import torch
from overload import closed_loop, counted, open_loop, percentile, post
from running_server import PROCESS

from detserver.recipes.techniques.compile import unavailable_reason

pytestmark = pytest.mark.slow

needs_a_compiler = pytest.mark.skipif(unavailable_reason(torch.device("cpu")) is not None, reason="no C++ compiler")

DEADLINE_MS = 2000
SECONDS = 15.0
JPEG = {"Content-Type": "image/jpeg"}
ONE_NETWORK = """
[[model_sets.quick.models]]
architecture = "tf_efficientdet_d0"
num_classes = 90
image_size = 128
"""


@pytest.mark.timeout(300)
def test_five_times_the_capacity_is_answered_in_time_or_refused_at_once_and_all_is_accounted_for(
    start_server, photos: list[Path]
):
    server = start_server(preload="baseline", queue_size="16")
    content = photos[0].read_bytes()
    message = post("baseline", content, f"X-Deadline-Ms: {DEADLINE_MS}")
    capacity = asyncio.run(closed_loop(server.url, post("baseline", content), 2, 5.0))
    before = counted(httpx.get(f"{server.url}/metrics").text, "baseline")
    load = asyncio.run(open_loop(server.url, message, 5 * capacity, SECONDS, connections=64))
    counts = load.counts()
    assert set(counts) <= {200, 429, 503}
    assert counts[200] > 0.5 * capacity * SECONDS
    assert counts[429] + counts[503] > 2 * capacity * SECONDS
    assert all(outcome.retry_after for outcome in load.outcomes if outcome.status != 200)
    assert percentile(load.took_s(200), 99) <= 1e-3 * DEADLINE_MS + 0.05  # on the way to the client
    assert percentile(load.took_s(429, 503), 90) < 0.5
    after = counted(httpx.get(f"{server.url}/metrics").text, "baseline")
    assert after - before == counts
    time.sleep(1)
    assert server.infer("baseline", content=content, headers=JPEG | {"X-Deadline-Ms": str(DEADLINE_MS)}).is_success
    assert "Traceback" not in server.log


@pytest.mark.timeout(300)
def test_sigterm_in_the_middle_of_an_overload_loses_nothing_that_was_taken_in(start_server, photos: list[Path]):
    server = start_server(program=PROCESS, preload="baseline", queue_size="8")
    content = photos[0].read_bytes()
    capacity = asyncio.run(closed_loop(server.url, post("baseline", content), 2, 5.0))
    told: list[float] = []

    async def load_and_tell() -> list:
        running = asyncio.create_task(
            open_loop(server.url, post("baseline", content), 5 * capacity, 6.0, connections=32)
        )
        await asyncio.sleep(3.0)
        told.append(time.perf_counter())
        server.process.send_signal(signal.SIGTERM)
        return (await running).outcomes

    outcomes = asyncio.run(load_and_tell())
    assert server.process.wait(30) == 0
    before = [outcome.status for outcome in outcomes if outcome.sent < told[0]]
    assert set(before) <= {200, 429, 503}
    assert before.count(200) > 0
    # Afterwards nothing is taken in: no connection, or the reason.
    assert {outcome.status for outcome in outcomes if outcome.sent > told[0] + 0.2} <= {0, 503}
    assert "Cancel" not in server.log
    assert "Traceback" not in server.log


def test_a_second_signal_ends_the_server_at_once(start_server, photos: list[Path]):
    server = start_server(program=PROCESS, default_model_set="mixed", preload="baseline", torch_threads="1")
    content = photos[0].read_bytes()

    async def ask_and_end() -> None:
        asked = [asyncio.create_task(closed_loop(server.url, post("baseline", content), 1, 0.1)) for _ in range(12)]
        await asyncio.sleep(2.0)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        await asyncio.to_thread(server.process.wait, 30)
        assert time.monotonic() - start < 10, "twelve requests take longer"
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(ask_and_end())


@pytest.mark.timeout(300)
def test_images_of_clients_that_have_gone_do_not_reach_the_device(start_server, photos: list[Path]):
    server = start_server(preload="baseline", queue_size="64", torch_threads="1")
    message = post("baseline", photos[0].read_bytes())

    async def ask(stays: bool) -> None:
        address = httpx.URL(server.url)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(message)
        await writer.drain()
        if stays:
            assert b" 200 " in await reader.readline()
        else:
            await asyncio.sleep(0.05)
        writer.close()

    async def ask_all() -> None:
        await asyncio.gather(*(ask(number % 2 == 0) for number in range(40)))

    def images() -> int:
        (line,) = [
            each for each in httpx.get(f"{server.url}/metrics").text.splitlines()
            if each.startswith('detserver_device_images_total{implementation="baseline"')
        ]  # fmt: skip
        return int(float(line.split()[-1]))

    asyncio.run(ask_all())
    metrics = httpx.get(f"{server.url}/metrics").text
    gone = int(float(next(line for line in metrics.splitlines() if 'reason="ClientGone"' in line).split()[-1]))
    assert gone == 20
    # All but those that the device had begun with.
    assert 20 <= images() <= 23


@pytest.mark.timeout(900)
@pytest.mark.parametrize("slow_to_load", ["fastest", pytest.param("compiled", marks=needs_a_compiler)])
def test_what_is_loaded_is_served_while_another_is_made_and_who_asks_for_that_waits_no_longer_than_it_wants(
    start_server, photos: list[Path], tmp_path: Path, slow_to_load: str
):
    one = tmp_path / "model_sets.toml"
    one.write_text(ONE_NETWORK)
    server = start_server(preload="baseline", data_dir=str(tmp_path), model_sets_file=str(one))
    content = photos[0].read_bytes()
    alone = asyncio.run(open_loop(server.url, post("baseline", content), 1.0, 8.0, connections=4))

    async def load_beside() -> tuple[list, list, httpx.Response]:
        async with httpx.AsyncClient(timeout=800) as client:
            loading = asyncio.create_task(client.post(f"{server.url}/implementations/{slow_to_load}/load"))
            await asyncio.sleep(1.0)
            impatient = post(slow_to_load, content, "X-Deadline-Ms: 1500")
            asked, waited = await asyncio.gather(
                open_loop(server.url, post("baseline", content), 1.0, 8.0, connections=16),
                open_loop(server.url, impatient, 1.0, 4.0, connections=8),
            )
            assert not loading.done()
            return asked.outcomes, waited.outcomes, await loading

    asked, waited, loaded = asyncio.run(load_beside())
    assert loaded.is_success
    assert {outcome.status for outcome in (*alone.outcomes, *asked)} == {200}
    assert {outcome.status for outcome in waited} <= {429, 503}
    # Long before the load ends: at its deadline, or at once where the device alone takes longer than that.
    assert all(outcome.took_s < 10.0 and outcome.retry_after for outcome in waited), waited
    answers = [server.infer(name, content=content, headers=JPEG).json() for name in ("baseline", slow_to_load)]
    for ours, theirs in zip(*(answer["detections"] for answer in answers), strict=True):
        assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-3)
        assert ours["boxes"][0] == pytest.approx(theirs["boxes"][0], abs=0.05)
