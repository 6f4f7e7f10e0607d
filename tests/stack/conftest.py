"""One stack for all tests: built, brought up, and taken down again whatever happened."""

from collections.abc import Iterator

import pytest
from running_stack import SERVICES, Stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    made = Stack()
    try:
        made.compose("build", "inference", "locust-master")
        made.compose("up", "--detach", "--wait", "--wait-timeout", "180", *SERVICES)
        yield made
    finally:
        made.compose("--profile", "tools", "down", "--volumes", "--remove-orphans", check=False)
