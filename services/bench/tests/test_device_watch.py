"""What a GPU does during a run: its energy, its power, and clocks that it has lowered."""

import itertools
import json
from pathlib import Path

import pytest
from made_reports import Page, comparison, reported, run, sweep
from stub_server import StubServer, entry

from detbench.report.pooled import pooled
from detbench.results.sweep import DeviceUse, Run
from detbench.verdict import judged


def states(*throttled: list[str]) -> list[dict]:
    """A GPU that takes 100 J and 50 W more from sample to sample."""
    return [
        {
            "clocks_mhz": {"sm": 1980 - 10 * number, "memory": 2619},
            "power_w": 300.0 + 50 * number,
            "energy_j": 1e6 + 100 * number,
            "throttle_reasons": reasons,
        }
        for number, reasons in enumerate(throttled)
    ]


def test_energy_power_and_clocks_of_a_run_are_measured(detbench, photo_dir: Path, tmp_path: Path):
    with StubServer(entry("quick")) as stub:
        stub.infer_s = 0.01
        told = states([], [], ["power cap"])
        stub.device_states = itertools.chain(told, itertools.repeat(told[-1]))
        command = ("run", "--host", stub.host, "--implementations", "quick", "--users", "1", "--duration", "3")
        assert detbench(*command, "--warmup", "1", "--dataset", photo_dir) == 0
    (folder,) = (tmp_path / "outputs").glob("*-single")
    (made,) = json.loads((folder / "results.json").read_text())["runs"]
    device = made["device"]
    assert (device["energy_j"], device["sm_clock_mhz"], device["memory_clock_mhz"]) == (200, [1960, 1970], [2619, 2619])
    assert 350 < device["power_w"] <= 400
    assert (0.4 < device["throttled"] < 1, device["throttle_reasons"]) == (True, ["power cap"])
    assert made["verdict"] == "invalid"
    assert "clocks-lowered" in [warning["code"] for warning in made["warnings"]]
    assert "energy (J/1,000)" in (folder / "results.md").read_text()


def used(throttled: float | None, energy_j: float | None = 500.0) -> Run:
    use = DeviceUse(
        energy_j=energy_j,
        power_w=300.0,
        sm_clock_mhz=(1900, 1980),
        memory_clock_mhz=None,
        throttled=throttled,
        throttle_reasons=["power cap"] if throttled else [],
    )
    return run("fastest", 1, 20).model_copy(update={"device": use})


@pytest.mark.parametrize(("throttled", "doubted"), [(None, False), (0.0, False), (0.04, False), (0.5, True)])
def test_lowered_clocks_invalidate_a_run_from_a_twentieth_of_it_on(throttled: float | None, doubted: bool):
    codes = [warning.code for warning in judged(used(throttled)).warnings]
    assert ("clocks-lowered" in codes) == doubted


def test_energy_is_of_a_thousand_images_and_adds_up_over_rounds(tmp_path: Path):
    page = reported(tmp_path, sweep(runs=[used(0.0), run("baseline", 1, 2)], comparisons=[comparison("fastest", 0.0)]))
    assert "energy (J/1,000)" in Page(page).text
    assert "| 1,250 |" in (tmp_path / "results.md").read_text()  # 500 J for 400 images
    both = pooled([used(0.0), used(0.1)])
    assert both.device is not None
    assert (both.device.energy_j, both.device.throttled) == (1000, 0.1)
    assert both.joules_per_1000_images == pytest.approx(1250)
    unknown = pooled([used(0.0), used(0.0, energy_j=None)]).device
    assert unknown is not None
    assert unknown.energy_j is None
