"""Measures detserver and servers of others with the same work, in alternated rounds, and writes a page of it.

`make bench-peers` calls this. Two questions: what does serving cost when the models cost nothing (`invalid`), and what
is left of the difference with real detectors, whose answers are compared with the reference. See `work`.
"""

import argparse
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import psutil
from closed_loop import Answered, Asked, Photo
from PIL import Image
from rich.console import Console

from detbench.api.client import ServerClient
from detbench.api.protocol import Native, Oip, Protocol, Tensors
from detbench.datasets import Dataset, fetch_or_open
from detbench.host import CpuWatch
from detbench.load.answers import DistinctAnswer, read_answers
from detbench.measure.server_process import ServerProcess
from detbench.quality.audit import audit
from detbench.quality.outputs import ImageOutput, collect
from detbench.results.quality import Audit
from detbench.statistics.percentiles import percentiles
from detbench.statistics.ratios import interleaved, paired_ratio

HERE = Path(__file__).absolute().parent
ROOT = HERE.parents[2]
PAGE = ROOT / "docs" / "results" / "peers.md"
OUTPUTS = ROOT / "outputs" / "peers"
TRITON_PYTHON = ROOT / ".venv-triton" / "bin" / "python"
OURS, EFFDET = "detserver", "effdet"
INVALID = "invalid"
WARM_UP_S = 2.0
FIRST_ANSWER_S = 5.0  # a request of a slow model has to fit in

# Two of one architecture would do, but these are what the other pages measure.
OVERHEAD_SET, MODELS_SET = "mixed", "uniform"
PHOTOS = 4

GOOD_FOR = """\
- **detserver**: several detectors on every image of one device. One process, so that nothing is loaded twice; requests
  wait in one queue, and are refused at once where they would wait too long. It gives a request all cores, for networks
  that use them. It serves nothing but EfficientDet, and where many ask a machine without a GPU at the same time,
  several processes with a core each do more.
- **LitServe**: a model of one's own in an afternoon. Processes for the cores, batches on request; each process holds
  the models again.
- **BentoML**: the same with packaging and deployment around it. A connection stays with one worker, so that with few of
  them a core may have nothing to do: its rounds at eight clients differ.
- **Triton**: many models of many frameworks on many GPUs, with its own metrics, batching and protocol. Through its
  Python backend, as here, each request crosses to a Python process and back, and all decoding shares one interpreter;
  its own backends (ONNX Runtime, TensorRT) run networks without Python, and leave decoding, letterbox and NMS to
  somebody else: `detbench export --to triton`.
- **KServe**: one protocol and one way to deploy for a whole Kubernetes cluster. Pictures cross in base64, and
  connections stay with their worker here, too.
"""


@dataclass(frozen=True, eq=False)
class Peer:
    """A server: its version, how it prepares pictures, and the command that lets it listen on a port."""

    name: str
    version: str
    work: str
    command: Sequence[str]
    environment: Mapping[str, str]
    port: int
    protocol: Protocol

    @property
    def host(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"


Rounds = dict[tuple[Peer, int], list[Answered]]
"""By server and number of clients."""


@dataclass(frozen=True)
class Part:
    """One question: the model that all servers run, and what came out.

    `audits` are of all answers of a server, where there is a reference.
    """

    model: str
    servers: Sequence[Peer]
    rounds: Rounds
    audits: Mapping[Peer, Audit]


def peers(model: str, model_set: str, models: Sequence[str], workers: int) -> list[Peer]:
    """All servers that are installed, each with as many workers as there are cores, where it has workers."""
    python = sys.executable
    works = (EFFDET, OURS) if model == INVALID else (OURS,)
    oip = Oip(models=tuple(models))
    commands: dict[str, tuple[str, Sequence[str], Protocol]] = {
        "LitServe": (version("litserve"), (python, str(HERE / "litserve_app.py"), "{port}"), Native()),
        "BentoML": (
            version("bentoml"),
            (python, "-m", "bentoml", "serve", "bentoml_app:Detect", "--port", "{port}"),
            Native(),
        ),
        "KServe": (
            version("kserve"),
            (python, str(HERE / "kserve_app.py"), "{port}"),
            oip.model_copy(update={"tensors": Tensors(encoding="json")}),
        ),
    }
    if TRITON_PYTHON.exists():
        said = subprocess.run(
            [TRITON_PYTHON, "-c", "from importlib.metadata import version; print(version('nvidia-pytriton'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        commands["Triton"] = (f"by pytriton {said}", (str(TRITON_PYTHON), str(HERE / "triton_app.py"), "{port}"), oip)
    own = (python, "-m", "detserver", "--preload", model, "--default-model-set", model_set, "--port", "{port}")
    listed = [(OURS, OURS, version(OURS), own, Native())]
    listed += [(name, work, *command) for work in works for name, command in commands.items()]
    found = []
    for (name, work, release, command, protocol), port in zip(listed, free_ports(len(listed)), strict=True):
        environment = {
            **{"MODEL": model, "MODEL_SET": model_set, "WORK": work, "WORKERS": str(workers)},
            **{"BENTOML_DO_NOT_TRACK": "True", "DETSERVER_DATA_DIR": str(ROOT / "data")},
            "NUMBA_CACHE_DIR": str(ROOT / "data" / "cache" / "numba"),
        }
        command = [part.format(port=port) for part in command]
        found.append(Peer(name, release, work, command, environment, port, protocol))
    return found


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def sample_photos() -> Path:
    """A folder of photographs of `sample` in the size of COCO's, and as a camera compresses them."""
    folder = OUTPUTS / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    for photo in fetch_or_open("sample", ROOT / "data", PHOTOS).photos:
        with Image.open(io.BytesIO(photo.read())) as opened:
            opened.convert("RGB").resize((640, 427)).save(folder / f"{Path(photo.name).stem}.jpg", quality=90)
    return folder


@contextmanager
def running(peer: Peer, asked: Asked, logs: Path) -> Iterator[psutil.Process]:
    """The server, from its first right answer to the end of the block; it sleeps but while it is `awake`."""
    log = logs / f"{peer.name}-{asked.model}-{peer.work}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            peer.command, cwd=HERE, env=os.environ | peer.environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    server = psutil.Process(process.pid)
    try:
        wait_for_answer(peer, process, asked, log)
        with awake(server):
            pass
        yield server
    finally:
        each_of(server, psutil.Process.resume)  # what is stopped does not hear SIGTERM
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


@contextmanager
def awake(server: psutil.Process) -> Iterator[None]:
    """Let the processes of a server run in the block and not after it.

    Idle servers take processor time, too, and more from one that keeps all cores busy than from one that leaves a core
    to them: `onnxruntime` in detserver took 254 ms with four others idle beside it, and 173 ms alone.
    """
    each_of(server, psutil.Process.resume)
    try:
        yield
    finally:
        # A signal is delivered some time after it was sent, and later where all cores are busy.
        until = time.monotonic() + 10
        while not asleep(server) and time.monotonic() < until:
            time.sleep(0.01)


def asleep(server: psutil.Process) -> bool:
    """Whether all processes of a server are stopped; those that are not are told to."""
    running = []

    def stop(each: psutil.Process) -> None:
        if each.status() not in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}:
            running.append(each)
            each.suspend()

    each_of(server, stop)
    return not running


def each_of(server: psutil.Process, do: Callable[[psutil.Process], None]) -> None:
    """Call `do` with a process and with all that it has started; some may end meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                do(each)


def wait_for_answer(peer: Peer, process: "subprocess.Popen[bytes]", asked: Asked, log: Path) -> None:
    """Ask until there is an answer; ends the program where the server ends, or takes more than two minutes."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", peer.port), 1).close()
            if load(asked.model_copy(update={"users": 1, "seconds": FIRST_ANSWER_S})).latencies_ms:
                return
        time.sleep(0.3)
    raise SystemExit(f"error: {peer.name} does not answer; the end of {log}:\n{log.read_text()[-2000:]}")


def load(asked: Asked) -> Answered:
    """One load, by a process of its own.

    Raises:
        SystemExit: it ended badly; an answer was malformed, for example.
    """
    ended = subprocess.run(
        [sys.executable, str(HERE / "closed_loop.py")],
        input=asked.model_dump_json(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise SystemExit(f"error: {asked.host}: {ended.stderr.strip()[-2000:]}")
    return Answered.model_validate_json(ended.stdout)


def measure(
    model: str, model_set: str, dataset: Dataset, reference: Sequence[ImageOutput], options: argparse.Namespace
) -> Part:
    """Let all servers run one model of a model set, in rounds."""
    names = [found.model_name for found in reference[0].detections]
    servers = peers(model, model_set, names, len(os.sched_getaffinity(0)))
    real = model != INVALID
    count = options.model_rounds if real else options.rounds
    seconds = options.model_seconds if real else options.seconds
    photos = [Photo(path=photo.path.absolute(), sha256=photo.sha256) for photo in dataset.photos]
    rounds: Rounds = {(peer, users): [] for peer in servers for users in options.users}
    with contextlib.ExitStack() as stack:
        asked, processes = {}, {}
        for peer in servers:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            asked[peer] = Asked(
                host=peer.host, protocol=peer.protocol, model=model, model_set=model_set, photos=photos, users=1,
                seconds=seconds,
            )  # fmt: skip
            sys.stderr.write(f"{model}: starting {peer.name} {peer.version}, letterboxes by {peer.work}\n")
            processes[peer] = stack.enter_context(running(peer, asked[peer], OUTPUTS))
            asked[peer].answers = folder
        for number, order in enumerate(interleaved(servers, count), 1):
            for users in options.users:
                for peer in order:
                    one = asked[peer].model_copy(update={"users": users})
                    with awake(processes[peer]):
                        load(one.model_copy(update={"seconds": WARM_UP_S, "answers": None}))
                        rounds[peer, users].append(load(one))
            said = ", ".join(
                f"{peer.name} {' and '.join(f'{rate(rounds[peer, n][-1]):.1f}' for n in options.users)}"
                for peer in servers
            )
            sys.stderr.write(f"{model}: round {number} of {count}: {said} requests/s\n")
        audits = {}
        if real:
            for peer in servers:
                folder = asked[peer].answers
                assert folder is not None
                answers = [DistinctAnswer(*each) for each in read_answers(folder)]
                count = sum(sum(each.times.values()) for each in answers)
                audits[peer] = audit(reference, answers, answered=count, exact=True)
    return Part(model, servers, rounds, audits)


def reference_of(model_set: str, dataset: Dataset) -> list[ImageOutput]:
    """What `baseline` of a detserver answers, started for it."""
    environment = {"DETSERVER_PRELOAD": "none", "DETSERVER_DATA_DIR": str(ROOT / "data")}
    with ServerProcess(OUTPUTS / f"reference-{model_set}.log", environment) as process:
        process.wait_ready()
        with ServerClient(process.host) as client:
            client.load("baseline", model_set)
            return collect(client, "baseline", model_set, dataset.photos)


def rate(one: Answered) -> float:
    """Requests per second of a round."""
    return len(one.latencies_ms) / max(one.window_s, 1e-9)


def table(part: Part, options: argparse.Namespace) -> Iterator[str]:
    """The rows of one part, as Markdown."""
    compared, rule = (" right answers |", " ---: |") if part.audits else ("", "")
    yield f"| server | pictures by | clients | requests/s | p50 (ms) | p99 (ms) | failed |{compared} detserver is |"
    yield f"| --- | --- | ---: | ---: | ---: | ---: | ---: |{rule} --- |"
    for users in options.users:
        ours = [rate(one) for one in part.rounds[part.servers[0], users]]
        for peer in part.servers:
            rounds = part.rounds[peer, users]
            rates = [rate(one) for one in rounds]
            shown = {each.rank: each for each in percentiles([ms for one in rounds for ms in one.latencies_ms])}
            p99 = f"{shown[99].value_ms:,.1f}" if shown[99].certified else f"({shown[99].value_ms:,.1f})"
            failed = sum(len(one.failed) for one in rounds)
            right = f" {part.audits[peer].right} of {part.audits[peer].audited} |" if part.audits else ""
            ratio = "" if peer is part.servers[0] else str(paired_ratio(ours, rates))
            yield (
                f"| {peer.name} {peer.version} | {peer.work} | {users} | {mean(rates):.3g} | "
                f"{shown[50].value_ms:,.1f} | {p99} | {failed} |{right} {ratio} |"
            )


def page(parts: Sequence[Part], facts: Mapping[str, str], options: argparse.Namespace) -> str:
    """The page, as Markdown."""
    overhead, *models = parts
    lines = [
        "# The server beside others",
        "",
        "`make bench-peers` has written this. Servers take turns in rounds, each with the same photographs from the",
        "same clients, while all others are stopped (SIGSTOP): idle ones take processor time, too. *detserver is*",
        "so many times as fast, with a 95 % interval over the rounds' ratios. The others have a worker for each core,",
        "each with a core's share of threads; detserver is one process.",
        "(In parentheses): fewer requests than a p99 needs.",
        "",
        *(f"- {name}: {fact}" for name, fact in facts.items()),
        "",
        "## When the models cost nothing",
        "",
        f"Every server decodes a JPEG, letterboxes and normalises it for the inputs of `{OVERHEAD_SET}`, and gives",
        "a constant answer: once by effdet's own transform, as one would write it there, and once with detserver's",
        "functions, so that only the serving differs. What comes out is the same, bit for bit.",
        "",
        *table(overhead, options),
    ]
    if models:
        lines += [
            "",
            "## With real detectors",
            "",
            f"The three detectors of `{MODELS_SET}`, the same networks and weights in every server, with detserver's",
            "decoding and letterbox. Every answer is compared with the reference, `baseline` asked alone, within the",
            "limits of the [gate](../measuring.md).",
        ]
    for part in models:
        lines += ["", f"### `{part.model}`", "", *table(part, options)]
        for peer, found in part.audits.items():
            lines += [f"\n{peer.name}: {'; '.join(found.reasons)}"] if found.reasons else []
    return "\n".join([*lines, "", "## What each is good for", "", GOOD_FOR])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEGs to send (default: some of `sample`, in 640x427)")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8], help="clients (default: 1 8)")
    parser.add_argument("--rounds", type=int, default=5, help="without models (default: 5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each server in each of these (default: 8)")
    parser.add_argument("--model-rounds", type=int, default=3, help="with real detectors (default: 3)")
    parser.add_argument(
        "--model-seconds", type=float, default=15.0, help="of each server in each of these (default: 15)"
    )
    parser.add_argument(
        "--models", nargs="*", default=["baseline", "onnxruntime"], metavar="NAME",
        help="implementations of detserver that all servers run, too (default: baseline onnxruntime; none: --models)",
    )  # fmt: skip
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write (default: docs/results/peers.md)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end, too
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    dataset = fetch_or_open(str(options.photos or sample_photos()), ROOT / "data", PHOTOS)
    if not TRITON_PYTHON.exists():
        Console(stderr=True).print(f"without Triton: {TRITON_PYTHON} is not there; make bench-peers says how")
    watch = CpuWatch()
    sets = {OVERHEAD_SET: [INVALID], MODELS_SET: options.models}
    parts = []
    for model_set, models in sets.items():
        if models:
            reference = reference_of(model_set, dataset)
            parts += [measure(model, model_set, dataset, reference, options) for model in models]
    shares = watch.shares()
    stolen = f"; its host took {100 * shares.steal:.1f} % of them away" if shares else ""
    sizes = sum(photo.path.stat().st_size for photo in dataset.photos) / len(dataset.photos)
    facts = {
        "Machine": f"{machine()}, {len(os.sched_getaffinity(0))} cores{stolen}",
        "Photographs": f"{len(dataset.photos)} of {sizes / 1e3:.0f} kB on average",
        "Rounds": f"{options.rounds} of {options.seconds:g} s",
        "Rounds with models": f"{options.model_rounds} of {options.model_seconds:g} s",
        "Day": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    text = page(parts, facts, options)
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
