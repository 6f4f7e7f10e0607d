"""The dashboards: in step with their generator, and readable by somebody who sees them for the first time."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import generate
import pytest
import yaml
from metric_names import families
from panels import SERVER_STAGES

from detbench.measure.pushgateway import ERROR_FIGURES, RUN_FIGURES
from detserver.http.routes import create_app
from detserver.http.stages import STAGES
from detserver.settings import Settings

ROOT = Path(__file__).parents[1]
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
UNITS = {"short", "s", "reqps", "percent", "percentunit", "bytes", "watt", "joule", "celsius", "hertz", "sci"}


def panels(dashboard: dict) -> Iterator[dict]:
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


ALL_PANELS = [
    pytest.param(panel, id=f"{path.stem}-{panel['title']}")
    for path in DASHBOARDS
    for panel in panels(json.loads(path.read_text()))
]


def test_the_files_are_what_the_generator_writes():
    on_disk = {path.name: path.read_text() for path in DASHBOARDS}
    assert on_disk == generate.rendered(), "run: make dashboards"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_read_only_has_a_fixed_uid_and_a_data_source_variable(path: Path):
    dashboard = json.loads(path.read_text())
    assert dashboard["editable"] is False
    assert dashboard["uid"].startswith("detbench-")
    assert dashboard["description"]
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert all(variable["label"] for variable in variables.values())
    assert [annotation["name"] for annotation in dashboard["annotations"]["list"]] == ["Runs", "Loads of detbench run"]


def test_the_waterfall_has_every_stage_of_the_server():
    assert SERVER_STAGES == STAGES


def test_uids_are_different():
    uids = [json.loads(path.read_text())["uid"] for path in DASHBOARDS]
    assert len(uids) == len(set(uids)) == 4


@pytest.mark.parametrize("panel", ALL_PANELS)
def test_a_panel_says_what_it_shows_in_which_unit_and_from_where(panel: dict):
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        assert target.get("legendFormat") or panel["type"] in {"stat", "table"}
        for window in re.findall(r"\[([^\]]+)\]", target["expr"]):
            assert window == "$__rate_interval"


@pytest.mark.parametrize("panel", ALL_PANELS)
def test_a_panel_without_a_series_says_what_that_means(panel: dict):
    """Grafana's own words are "No data", which on a machine without a GPU look like a mistake."""
    absent = panel["fieldConfig"]["defaults"]["noValue"]
    only_gpu = all("DCGM_" in target["expr"] for target in panel["targets"])
    assert ("no GPU" in absent) == only_gpu


@pytest.mark.parametrize("name", ["live", "compared"])
def test_random_weights_cannot_be_overlooked_beside_figures(name: str):
    found = panels(json.loads((ROOT / "grafana" / "dashboards" / f"{name}.json").read_text()))
    (weights,) = [panel for panel in found if panel["title"] == "Weights"]
    assert weights["gridPos"]["y"] <= 4
    (mapping,) = weights["fieldConfig"]["defaults"]["mappings"]
    for value, source in enumerate(("random", "pretrained", "local")):
        expression = f'{value} * max by (model_set, model) (detserver_weights_info{{source="{source}"}})'
        assert expression in weights["targets"][0]["expr"]
        assert source in mapping["options"][str(value)]["text"]
    assert mapping["options"]["0"]["text"] == "random weights: speeds only, detections mean nothing"
    assert mapping["options"]["0"]["color"] == "orange"


def test_results_tell_how_old_they_are_and_whose_answers_are_other_ones():
    found = {
        panel["title"]: panel
        for panel in panels(json.loads((ROOT / "grafana" / "dashboards" / "compared.json").read_text()))
    }
    units = {
        override["matcher"]["options"]: {each["id"]: each["value"] for each in override["properties"]}.get("unit")
        for override in found["Newest results"]["fieldConfig"]["overrides"]
    }
    assert units["Measured"] == units["Compared"] == "dateTimeFromNow"
    for title in ("p99 at 1 user", "Memory peak"):
        assert found[title]["targets"][0]["legendFormat"].endswith("{{answers}}")


def expressions() -> Iterator[str]:
    """Every PromQL expression of dashboards, recording rules and alerts."""
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in panels(dashboard):
            yield from (target["expr"] for target in panel["targets"])
        yield from (annotation["expr"] for annotation in dashboard["annotations"]["list"])
    for rule in rules():
        yield rule["expr"]


def rules() -> Iterator[dict]:
    for path in (ROOT / "prometheus" / "rules").glob("*.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def named_metrics() -> set[str]:
    found = set()
    for expression in expressions():
        without_strings = re.sub(r'"[^"]*"', '""', expression)
        found |= set(re.findall(r"\b(?:det(?:server|bench)_\w+|DCGM_\w+|ray_\w+|[a-z_]+:[\w:]+)", without_strings))
    return found


LOAD_SIDE = f"""
import argparse, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from locust.env import Environment
from detbench.load.locustfile import export_metrics
from metric_names import families
environment = Environment(parsed_options=argparse.Namespace(implementation="baseline", model_set="mixed"))
environment.create_master_runner("127.0.0.1", 0)
export_metrics(environment, port=0)
environment.load_metrics.about("run", "1 user", {{"p99": 0.2}})
print(*families(environment.load_metrics.registry))
"""


def exported_metrics() -> set[str]:
    """Names of all series that the server, the load side, one-shot jobs, DCGM and the recording rules can have."""
    names = families(create_app(Settings(weights_download=False)).state.server.telemetry.registry)
    # In a process of its own: Locust patches the standard library.
    found = subprocess.run([sys.executable, "-c", LOAD_SIDE], capture_output=True, text=True, check=True)
    names |= set(found.stdout.split())
    counters = (ROOT / "prometheus" / "dcgm" / "counters.csv").read_text()
    names |= set(re.findall(r"^(DCGM_\w+),", counters, re.M))
    names |= {rule["record"] for rule in rules() if "record" in rule}
    names |= {*ERROR_FIGURES, *RUN_FIGURES}
    return names


def of_ray(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("ray_")}


def test_every_metric_that_a_dashboard_or_a_rule_names_is_exported():
    named = named_metrics()
    missing = named - of_ray(named) - exported_metrics()
    assert not missing


def test_every_metric_of_ray_that_a_dashboard_or_a_rule_names_stands_in_its_sources():
    ray = pytest.importorskip("ray", reason="ray is not installed")
    sources = "".join(path.read_text() for path in (Path(ray.__path__[0]) / "serve" / "_private").rglob("*.py"))
    exported = {f"ray_{name}" for name in re.findall(r'"(serve_\w+)"', sources.replace("{protocol_name}", "http"))}
    named = of_ray(named_metrics())
    assert len(named) > 5
    assert {name for name in named if not {name, re.sub("_(total|count|sum|bucket)$", "", name)} & exported} == set()
