"""Tests that share something run in one process of pytest-xdist."""

import pytest


@pytest.fixture
def server() -> None:
    """Of this name, because those that share it are a group, too."""


@pytest.mark.usefixtures("server")
@pytest.mark.xdist_group("for the test's sake")
def test_the_group_of_a_test_is_known_to_the_process_that_shares_tests_out(request: pytest.FixtureRequest):
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("tests are not shared out by their groups: pytest --numprocesses 2 --dist loadgroup")
    assert request.node.nodeid.endswith("@for the test's sake")
