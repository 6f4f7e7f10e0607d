"""Settings: what an empty value means, and what a bad one is answered with."""

import subprocess
import sys

import pytest

from detserver.settings import Settings

VARIABLES = {name: f"DETSERVER_{name.upper()}" for name in Settings.model_fields}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_is_as_good_as_none(name: str, empty: str, monkeypatch):
    monkeypatch.setenv(VARIABLES[name], empty)
    assert Settings() == Settings.model_construct()


def test_empty_options_of_the_command_line_are_unset_too():
    options = ["--port=", "--preload=", "--weights-url", "", "--data-dir", ""]
    assert Settings(_cli_parse_args=options) == Settings.model_construct()  # type: ignore[call-arg]


@pytest.mark.parametrize("options", [[], ["--preload", "none"]])
def test_the_word_none_preloads_nothing(options: list[str], monkeypatch):
    if not options:
        monkeypatch.setenv("DETSERVER_PRELOAD", " none ")
    assert Settings(_cli_parse_args=options).preload == []  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "bad"), [("port", "abc"), ("seed", "-1"), ("log_level", "loud"), ("max_upload_mb", "0")]
)
def test_a_bad_value_is_one_line_that_names_the_variable(name: str, bad: str, monkeypatch):
    monkeypatch.setenv(VARIABLES[name], bad)
    ended = subprocess.run([sys.executable, "-m", "detserver"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {VARIABLES[name]}: ")
