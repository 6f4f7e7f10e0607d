"""Images and stacks for the tests, taken down again whatever happened."""

from collections.abc import Iterator

import pytest
from running_stack import SERVICES, Stack


@pytest.fixture(scope="session")
def images() -> None:
    """Both images, built from this checkout."""
    Stack().compose("build", "inference", "locust-master")


@pytest.fixture(scope="session")
def stack(images: None) -> Iterator[Stack]:
    """The stack with its defaults."""
    made = Stack()
    try:
        made.up(*SERVICES)
        yield made
    finally:
        made.down(check=False)
