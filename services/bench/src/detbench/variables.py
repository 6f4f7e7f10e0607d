"""Environment variables: what an empty one means, and reading a value out of one."""

import argparse
import os
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from detbench.errors import DetbenchError

_PREFIXES = ("BENCHMARK_", "DETBENCH_", "DETSERVER_")

Value = TypeVar("Value")


def forget_empty_variables() -> None:
    """Remove our empty variables, white space alone among them, from the environment: empty means unset.

    Compose passes "" for whatever its .env does not set. Every entry point calls this before anything reads a variable.
    """
    for name, value in list(os.environ.items()):
        if name.startswith(_PREFIXES) and not value.strip():
            del os.environ[name]


def of_variable(name: str, parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """`parse` as argparse's `type` of an option whose value may come from the variable `name`.

    Where the text is the variable's, the error names the variable: a person who gave no option looks for it there.
    """

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except (ValueError, DetbenchError) as error:
            where = f"{name}={text}: " if os.environ.get(name) == text else ""
            raise argparse.ArgumentTypeError(f"{where}{error}") from error

    return parsed


def web_address(name: str) -> str | None:
    """The http or https URL in the variable `name`, None where it is unset.

    Raises:
        DetbenchError: it is something else.
    """
    value = os.environ.get(name)
    if value is not None and urlsplit(value).scheme not in ("http", "https"):
        raise DetbenchError(f"{name}={value}: must be a URL that begins with http:// or https://")
    return value


def positive_int(text: str) -> int:
    """A whole number from 1; raises ValueError."""
    return _whole_number(text, 1, None)


def port(text: str) -> int:
    """A TCP port, or 0 for none; raises ValueError."""
    return _whole_number(text, 0, 65535)


def _whole_number(text: str, lowest: int, highest: int | None) -> int:
    reason = f"must be a whole number from {lowest}{'' if highest is None else f' to {highest}'}"
    try:
        value = int(text)
    except ValueError:
        raise ValueError(reason) from None
    if value < lowest or (highest is not None and value > highest):
        raise ValueError(reason)
    return value
