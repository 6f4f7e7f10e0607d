"""Measures detserver and servers of others with the same work, in alternated rounds, and writes a page of it.

`make bench-peers` calls this. What is measured is everything but the models: HTTP, decoding, letterboxes, and the way
between them. See `work`.
"""

import argparse
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import httpx
from PIL import Image
from work import DETSERVER, EFFDET, MODEL_SET, PATH

from detbench.datasets import fetch_or_open
from detbench.host import CpuWatch
from detbench.statistics.percentiles import percentiles
from detbench.statistics.ratios import interleaved, paired_ratio

HERE = Path(__file__).absolute().parent
ROOT = HERE.parents[2]
PAGE = ROOT / "docs" / "results" / "peers.md"
OUTPUTS = ROOT / "outputs" / "peers"
OURS = "detserver"
WARM_UP_S = 2.0


@dataclass(frozen=True, eq=False)
class Peer:
    """A server: its version, how it does the work, and the command that lets it listen on a port."""

    name: str
    version: str
    work: str
    command: Sequence[str]
    environment: Mapping[str, str]
    port: int


@dataclass(frozen=True)
class Round:
    """What one server answered in one round: requests per second, latencies in ms, and failures."""

    rps: float
    latencies_ms: list[float]
    failed: list[str]


Rounds = dict[tuple[Peer, int], list[Round]]
"""By server and number of clients."""


def peers(workers: int) -> list[Peer]:
    """All servers, each with as many workers as there are cores, where it has workers."""
    python = sys.executable
    commands = {
        OURS: (python, "-m", "detserver", "--preload", "invalid", "--port", "{port}"),
        "LitServe": (python, str(HERE / "litserve_app.py"), "{port}", str(workers)),
        "BentoML": (python, "-m", "bentoml", "serve", "bentoml_app:Invalid", "--port", "{port}"),
    }
    listed = [(OURS, DETSERVER), *((name, work) for work in (EFFDET, DETSERVER) for name in ("LitServe", "BentoML"))]
    found = []
    for (name, work), port in zip(listed, free_ports(len(listed)), strict=True):
        environment = {
            **{"WORK": work, "WORKERS": str(workers), "BENTOML_DO_NOT_TRACK": "True"},
            **{"DETSERVER_DATA_DIR": str(ROOT / "data"), "NUMBA_CACHE_DIR": str(ROOT / "data" / "cache" / "numba")},
        }
        command = [part.format(port=port) for part in commands[name]]
        found.append(Peer(name, version(name.lower()), work, command, environment, port))
    return found


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def sample_photo() -> Path:
    """A photograph of `sample` in the size of COCO's, and as a camera compresses it."""
    file = OUTPUTS / "photo.jpg"
    (photo, *_) = fetch_or_open("sample", ROOT / "data", 1).photos
    Image.open(io.BytesIO(photo.read())).convert("RGB").resize((640, 427)).save(file, quality=90)
    return file


@contextmanager
def running(peer: Peer, photo: Path, logs: Path) -> Iterator[None]:
    """The server, from its first right answer to the end of the block."""
    log = logs / f"{peer.name}-{peer.work}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            peer.command, cwd=HERE, env=os.environ | peer.environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_for_answer(peer, process, photo, log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


def wait_for_answer(peer: Peer, process: "subprocess.Popen[bytes]", photo: Path, log: Path) -> None:
    """Ask until the answer is right; ends the program where the server ends, or takes more than three minutes."""
    until = time.monotonic() + 180
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            form = {"file": ("photo.jpg", photo.read_bytes(), "image/jpeg")}
            answer = httpx.post(f"http://127.0.0.1:{peer.port}{PATH}", files=form, timeout=20, trust_env=False)
            if answer.is_success and len(answer.json()["detections"]) == 3:
                return
        time.sleep(0.3)
    raise SystemExit(f"error: {peer.name} does not answer; the end of {log}:\n{log.read_text()[-2000:]}")


def measured(peer: Peer, photo: Path, users: int, seconds: float) -> Round:
    """One round."""
    command = (sys.executable, str(HERE / "closed_loop.py"), f"http://127.0.0.1:{peer.port}{PATH}", str(photo))
    for duration_s in (WARM_UP_S, seconds):
        output = subprocess.run([*command, str(users), str(duration_s)], check=True, capture_output=True).stdout
    found = json.loads(output)
    return Round(len(found["latencies_ms"]) / seconds, found["latencies_ms"], found["failed"])


def page(servers: Sequence[Peer], rounds: Rounds, facts: Mapping[str, str]) -> str:
    """The page, as Markdown."""
    lines = [
        "# The server beside others",
        "",
        "What serving costs when the models cost nothing. Every server does the same work for a request: it decodes a",
        "JPEG, letterboxes and normalises it for 512, 640 and 768 pixels, and gives a constant answer. Those of others",
        "do it in a worker process for each core: once by effdet's own transform, as one would write it there, and",
        "once with detserver's functions, so that only the serving differs. What comes out is the same, bit for bit.",
        "",
        "`make bench-peers` has written this; servers take turns in rounds, and intervals are of 95 % over the",
        "rounds' ratios.",
        "",
        *(f"- {name}: {fact}" for name, fact in facts.items()),
        "",
        "| server | letterboxes by | clients | requests/s | p50 (ms) | p99 (ms) | failed | detserver is as fast |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for count in sorted({count for _, count in rounds}):
        for peer in servers:
            own = rounds[peer, count]
            shown = {each.rank: each.value_ms for each in percentiles([ms for one in own for ms in one.latencies_ms])}
            ratio = "" if peer.name == OURS else str(paired_ratio(rps(rounds[servers[0], count]), rps(own)))
            figures = (
                f"{mean(rps(own)):.1f} | {shown[50]:.1f} | {shown[99]:.1f} | {sum(len(each.failed) for each in own)}"
            )
            lines.append(f"| {peer.name} {peer.version} | {peer.work} | {count} | {figures} | {ratio} |")
    return "\n".join([*lines, ""])


def rps(rounds: Sequence[Round]) -> list[float]:
    """Requests per second of each round."""
    return [each.rps for each in rounds]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, help="the JPEG that is sent (default: one of `sample`, in 640x427)")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8], help="clients (default: 1 8)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each server in each round (default: 8)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write (default: docs/results/peers.md)")
    options = parser.parse_args()
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    photo = options.photo.absolute() if options.photo else sample_photo()
    cores = len(os.sched_getaffinity(0))
    servers = peers(cores)
    rounds: Rounds = {(peer, users): [] for peer in servers for users in options.users}
    with contextlib.ExitStack() as stack:
        for peer in servers:
            sys.stderr.write(f"starting {peer.name} {peer.version}, letterboxes by {peer.work}\n")
            stack.enter_context(running(peer, photo, OUTPUTS))
        watch = CpuWatch()
        for number, order in enumerate(interleaved(servers, options.rounds), 1):
            for users in options.users:
                for peer in order:
                    rounds[peer, users].append(measured(peer, photo, users, options.seconds))
            said = ", ".join(
                f"{peer.name} {' and '.join(f'{rounds[peer, users][-1].rps:.1f}' for users in options.users)}"
                for peer in servers
            )
            sys.stderr.write(f"round {number} of {options.rounds}: {said} requests/s\n")
        shares = watch.shares()
    stolen = f"; its host took {100 * shares.steal:.1f} % of them away" if shares else ""
    facts = {
        "Machine": f"{machine()}, {cores} cores{stolen}",
        "Photograph": f"{photo.name}, {photo.stat().st_size / 1e3:.0f} kB, for `{MODEL_SET}`",
        "Rounds": f"{options.rounds} of {options.seconds:g} s, {datetime.now(UTC):%Y-%m-%d}",
    }
    text = page(servers, rounds, facts)
    options.page.write_text(text)
    sys.stdout.write(text)


def machine() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown processor"


if __name__ == "__main__":
    main()
