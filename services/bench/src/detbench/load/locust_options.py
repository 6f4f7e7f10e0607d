"""The options of the Locust file, which are fields of the web UI's start form, too."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from locust import events
from locust.argument_parser import LocustArgumentParser

from detbench.api.client import ServerClient
from detbench.errors import ServerError
from detbench.load.schedules import ARRIVALS
from detbench.variables import of_variable, port, positive_int

log = logging.getLogger(__name__)

DEFAULT_HOST = "http://localhost:8000"


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add our options; the web UI makes fields of them, and drop-downs of those with choices."""
    implementations, model_sets = _offered(_host_of_command_line())
    for option, default, choices, help_text in (
        ("implementation", "baseline", implementations, "way of running the models"),
        ("model-set", "mixed", model_sets, "detectors that run on every image"),
        ("dataset", "sample", None, "photos to send: a dataset's name, or a folder"),
    ):
        variable = f"BENCHMARK_{option.replace('-', '_').upper()}"
        parser.add_argument(
            f"--{option}",
            type=of_variable(variable, _one_of(choices)),
            env_var=variable,
            default=default,
            choices=choices,
            help=help_text,
        )
    parser.add_argument(
        "--max-images",
        type=of_variable("BENCHMARK_MAX_IMAGES", positive_int),
        env_var="BENCHMARK_MAX_IMAGES",
        default=100,
        help="photos held in memory at most",
    )
    for option, help_text in (
        ("rate", "open loop: requests per second, of all workers; users are the senders then; 0: a closed loop"),
        ("burstiness", "open loop with gamma arrivals: 1 is Poisson, less comes in bursts"),
    ):
        variable = f"BENCHMARK_{option.upper()}"
        parser.add_argument(  # of the default's type, which is that of the form's field
            f"--{option}", type=of_variable(variable, _rate), env_var=variable, default=0.0, help=help_text
        )
    parser.add_argument(
        "--seed",
        type=of_variable("BENCHMARK_SEED", int),
        env_var="BENCHMARK_SEED",
        default=0,
        help="of arrivals and photos",
    )
    parser.add_argument(
        "--arrivals",
        env_var="BENCHMARK_ARRIVALS",
        default="",
        choices=["", *ARRIVALS],
        help="open loop: how requests arrive; poisson where it is empty",
    )
    parser.add_argument(
        "--steps", env_var="BENCHMARK_STEPS", default="", help='open loop: rates one after the other, "10s:5,1.5m:20"'
    )
    parser.add_argument(
        "--data-dir",
        env_var="BENCHMARK_DATA_DIR",
        default="data",
        include_in_web_ui=False,
        help="folder of the datasets",
    )
    parser.add_argument(
        "--metrics-port",
        type=of_variable("BENCHMARK_METRICS_PORT", port),
        env_var="BENCHMARK_METRICS_PORT",
        default=0,
        include_in_web_ui=False,
        help="port on which Prometheus finds the metrics of this process, 0: none; workers of --processes take the "
        "ports after it",
    )


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError("must be a number from 0")
    return value


def server_host(given: str | None) -> str:
    """The server that is loaded: the one that was given, else that of BENCHMARK_HOST, else this machine's."""
    return given or os.environ.get("BENCHMARK_HOST") or DEFAULT_HOST


def _one_of(choices: Sequence[str] | None) -> Callable[[str], str]:
    def checked(text: str) -> str:
        if choices is not None and text not in choices:
            raise ValueError(f"the server has {', '.join(choices)}")
        return text

    return checked


def _host_of_command_line() -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-H", "--host", default=os.environ.get("LOCUST_HOST"))
    return server_host(parser.parse_known_args(sys.argv[1:])[0].host)


def _offered(host: str) -> tuple[list[str] | None, list[str] | None]:
    """Implementations that can run there, and model sets; None, so a free field, while the server does not answer."""
    try:
        with ServerClient(host, timeout_s=2.0) as client:
            available = [row for row in client.implementations() if row.unavailable is None]
    except ServerError as error:
        log.warning("no drop-downs: %s", error)
        return None, None
    model_sets = dict.fromkeys(name for row in available for name in row.model_sets)
    return [row.name for row in available], list(model_sets)
