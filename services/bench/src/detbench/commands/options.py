"""Options that several subcommands share, and what they stand for."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from detbench.api.client import ServerClient, base_url
from detbench.datasets import Dataset, fetch_or_open
from detbench.errors import DetbenchError
from detbench.measure.progress import SweepProgress
from detbench.measure.revision import git_revision
from detbench.measure.selection import ALL
from detbench.measure.server_process import Cluster, ServerProcess
from detbench.measure.servers import OwnServers, ServerAt, Servers
from detbench.quality.compare import TOLERATED_MAP_LOSS
from detbench.results.loads import Objective
from detbench.slo import objective
from detbench.variables import of_variable, positive_int

_QUEUE_SIZE = 32  # detserver's default


def positive_float(text: str) -> float:
    """A number above 0, for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def percentage(text: str) -> float:
    """A share above 0 and below 1 that is written as percent, "3%" or "3", for argparse."""
    value = positive_float(text.strip().removesuffix("%")) / 100
    if value >= 1:
        raise argparse.ArgumentTypeError("must be below 100%")
    return value


def concurrency(text: str) -> int:
    """A number of requests in flight, for argparse: few enough that a server's queue takes them all."""
    value = positive_int(text)
    if value > _QUEUE_SIZE:
        raise argparse.ArgumentTypeError(f"must be {_QUEUE_SIZE} or less")
    return value


def limit(text: str) -> Objective:
    """A limit such as p99=200ms, for argparse."""
    try:
        return objective(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def map_loss(text: str) -> float:
    """A loss of mAP, for argparse."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


def add_implementations_option(parser: argparse.ArgumentParser, verb: str) -> None:
    """`--implementations`."""
    parser.add_argument(
        "--implementations",
        nargs="+",
        metavar="NAME",
        help=f"what to {verb}; default: all that the server can run with the model set but those that take minutes to "
        f"compile; {ALL}: those too",
    )


def add_concurrency_option(parser: argparse.ArgumentParser) -> None:
    """`--concurrency`."""
    parser.add_argument(
        "--concurrency",
        type=concurrency,
        default=1,
        metavar="N",
        help="requests in flight while outputs are compared; up to 32; a server that batches answers batches "
        "of up to N (default: %(default)s)",
    )


def add_map_loss_option(parser: argparse.ArgumentParser) -> None:
    """`--max-map-loss`."""
    parser.add_argument(
        "--max-map-loss",
        type=map_loss,
        default=TOLERATED_MAP_LOSS,
        metavar="L",
        help="how much of mAP, from 0 to 1, an implementation may lose that does not claim to be exact, where images "
        "are annotated (default: %(default)s)",
    )


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """`--host` and `--model-set`."""
    parser.add_argument(
        "--host",
        type=of_variable("BENCHMARK_HOST", base_url),
        default=os.environ.get("BENCHMARK_HOST"),
        help="base URL of a running server, asked directly whatever proxy the environment names; without it one is "
        "started for this command (env BENCHMARK_HOST)",
    )
    parser.add_argument(
        "--model-set",
        default=os.environ.get("BENCHMARK_MODEL_SET", "mixed"),
        help="detectors that run on every image (env BENCHMARK_MODEL_SET; default: %(default)s)",
    )


def add_replicas_option(parser: argparse.ArgumentParser) -> None:
    """`--replicas`."""
    parser.add_argument(
        "--replicas",
        nargs="+",
        type=positive_int,
        metavar="N",
        help="measure each implementation in clusters of so many replicas, one after the other, which are started for "
        "this command and need Ray Serve; with 1 among them the others are compared with that",
    )


def check_replicas(options: argparse.Namespace) -> None:
    """Raise `DetbenchError` where clusters are to be started, and there is a server."""
    if options.replicas and options.host:
        raise DetbenchError(
            "--replicas starts clusters of its own, and --host (or BENCHMARK_HOST) is a server that runs; leave one out"
        )


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """`--dataset`, `--max-images`, `--data-dir` and `--outputs-dir`."""
    parser.add_argument(
        "--dataset",
        default=os.environ.get("BENCHMARK_DATASET", "sample"),
        help="name of a dataset, or a folder of images (env BENCHMARK_DATASET; default: %(default)s)",
    )
    parser.add_argument(
        "--max-images",
        type=of_variable("BENCHMARK_MAX_IMAGES", positive_int),
        default=os.environ.get("BENCHMARK_MAX_IMAGES", "100"),
        help="use the first N images (env BENCHMARK_MAX_IMAGES; default: %(default)s)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("BENCHMARK_DATA_DIR", "data"),
        help="folder of datasets and weights (env BENCHMARK_DATA_DIR; default: %(default)s)",
    )
    parser.add_argument(
        "--outputs-dir",
        type=Path,
        default=os.environ.get("BENCHMARK_OUTPUTS_DIR", "outputs"),
        help="folder for what is made (env BENCHMARK_OUTPUTS_DIR; default: %(default)s)",
    )


def add_resume_option(parser: argparse.ArgumentParser, of_the_plan: Sequence[str]) -> None:
    """`--resume`; the options that `of_the_plan` names, which it takes from the run, must have been added before."""
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with this run, which was broken off, as it was asked for: its folder in outputs/",
    )
    parser.set_defaults(defaults={name: parser.get_default(name) for name in of_the_plan})


def check_resumable(options: argparse.Namespace, ended: datetime | None) -> None:
    """Whether the run of `--resume` can go on.

    Args:
        ended: when it was measured to its end.

    Raises:
        DetbenchError: it has ended, or other options ask for something else than it did.
    """
    if ended is not None:
        raise DetbenchError(f"{options.resume} was measured to its end; nothing is left to resume")
    if other := [name for name, default in options.defaults.items() if str(getattr(options, name)) != str(default)]:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        raise DetbenchError(f"--resume goes on as {options.resume} was asked for; leave out {given}")


def add_protocol_options(parser: argparse.ArgumentParser) -> None:
    """`--protocol` and `--tensors`."""
    parser.add_argument(
        "--protocol",
        choices=("native", "oip"),
        default="native",
        help="how the server of --host is asked: as a detserver, or by the Open Inference Protocol, as Triton, KServe "
        "and others are; --implementations are its models then (default: %(default)s)",
    )
    parser.add_argument(
        "--tensors",
        type=Path,
        metavar="FILE",
        help="TOML file that says which tensors of the server hold boxes, scores and labels, where they are not called "
        "as a detserver's are",
    )


def servers_of(options: argparse.Namespace, run_dir: Path, progress: SweepProgress, most_in_flight: int = 1) -> Servers:
    """The server of `--host`, or servers of our own whose queues take `most_in_flight` requests."""
    if options.host:
        return ServerAt(options.host)
    return OwnServers(partial(own_server, data_dir=options.data_dir, most_in_flight=most_in_flight), run_dir, progress)


def opened_dataset(options: argparse.Namespace) -> Dataset:
    """The dataset of the options.

    Raises:
        DatasetError: it is not there; the message says how to get it.
    """
    return fetch_or_open(options.dataset, options.data_dir, options.max_images)


def own_server(log: Path, cluster: Cluster | None, *, data_dir: Path, most_in_flight: int = 1) -> ServerProcess:
    """A server for this command alone: with nothing loaded, so that one implementation at a time can be, or a cluster.

    Its queue takes `most_in_flight` requests, unless DETSERVER_QUEUE_SIZE says otherwise; that of a replica, too.
    """
    queue_size = os.environ.get("DETSERVER_QUEUE_SIZE", str(max(most_in_flight, _QUEUE_SIZE)))
    environment = {
        "DETSERVER_PRELOAD": "none",
        "DETSERVER_REPLICAS": "0",
        "DETSERVER_DATA_DIR": str(data_dir),
        "DETSERVER_QUEUE_SIZE": queue_size,
    }
    if revision := git_revision():
        environment["DETSERVER_REVISION"] = revision
    return ServerProcess(log, environment, cluster)


@contextmanager
def connected(options: argparse.Namespace, console: Console) -> Iterator[ServerClient]:
    """A client of `--host`, or of a server that is started now and ended after the block.

    Raises:
        ServerError: no server answers, or ours does not start.
    """
    if options.host:
        with ServerClient(options.host) as client:
            client.ready()
            yield client
        return
    with own_server(options.outputs_dir / "server.log", None, data_dir=options.data_dir) as process:
        with console.status("starting the server"):
            process.wait_ready()
        with ServerClient(process.host) as client:
            yield client
