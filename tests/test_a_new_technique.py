"""A technique that is added for the test's sake, as docs/techniques.md says: a field, a file, a row, nothing else."""

import json
import os
import re
import shutil
from pathlib import Path

import httpx
import pytest

from detbench.__main__ import main
from detbench.datasets import fetch
from detbench.measure.server_process import ServerProcess

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "techniques.md").read_text()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the server's sources with the technique of the page in it."""
    source = tmp_path_factory.mktemp("sources")
    package = source / "detserver"
    shutil.copytree(REPOSITORY / "services" / "inference" / "src" / "detserver", package)
    recipe, table = package / "recipes" / "recipe.py", package / "implementations" / "table.py"
    recipe.write_text(
        recipe.read_text().replace("    graph: bool = False\n", "    graph: bool = False\n    twice: bool = False\n")
    )
    (file,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (package / "recipes" / "techniques" / "twice.py").write_text(file.replace("\n   ", "\n").lstrip())
    (row,) = re.findall(r'`(Row\("twice".*?)`:?', PAGE)
    table.write_text(table.read_text().rstrip().removesuffix(")") + f"    {row},\n)\n")
    return source


@pytest.mark.slow
def test_it_is_served_measured_and_reported(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data_dir, outputs = tmp_path / "data", tmp_path / "outputs"
    fetch("sample", data_dir)
    models = data_dir / "models"
    models.mkdir()
    (models / "model_sets.toml").write_text(
        "[[model_sets.small.models]]\narchitecture = 'tf_efficientdet_d0'\nnum_classes = 7\nimage_size = 128\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{sources}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("DETSERVER_WEIGHTS_DOWNLOAD", "false")
    monkeypatch.setenv("DETSERVER_DEVICE", "cpu")
    common = ["--model-set", "small", "--data-dir", data_dir, "--outputs-dir", outputs, "--max-images", 2]

    with ServerProcess(
        tmp_path / "server.log", {"DETSERVER_PRELOAD": "none", "DETSERVER_DATA_DIR": str(data_dir)}
    ) as server:
        server.wait_ready()
        listed = {each["name"]: each for each in httpx.get(f"{server.host}/implementations").json()}
        assert listed["twice"]["recipe"] == listed["folded"]["recipe"] | {"twice": True}
        assert (listed["twice"]["adds_to"], listed["twice"]["technique"]) == ("folded", "each network twice")
        assert listed["twice"]["exact"]

    names = ["baseline", "folded", "twice"]
    assert _detbench("run", "--ablation", "--implementations", *names, "--repeats", "1", "--batches", 5, *common) == 0
    (page,) = outputs.glob("*-ablation/ablation.html")
    assert "each network twice" in page.read_text()
    steps = json.loads(page.with_name("ablation.json").read_text())["steps"]
    assert [step["implementation"]["name"] for step in steps] == names
    assert all(step["comparison"]["gate"]["passed"] for step in steps)

    load = ["--users", 1, "--duration", 1, "--warmup", 1]
    assert _detbench("run", "--implementations", "twice", "--compare-outputs", *load, *common) == 0
    (report,) = outputs.glob("*-small/report.html")
    assert "twice" in report.read_text()


def _detbench(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])
