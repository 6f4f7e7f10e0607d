"""Tests that share something run in one process of pytest-xdist."""

import pytest


@pytest.mark.xdist_group("for the test's sake")
def test_the_group_of_a_test_is_known_to_the_process_that_shares_tests_out(request: pytest.FixtureRequest):
    if request.config.getoption("dist", "no") != "loadgroup" and not hasattr(request.config, "workerinput"):
        pytest.skip("the tests run in one process")
    assert request.node.nodeid.endswith("@for the test's sake")
