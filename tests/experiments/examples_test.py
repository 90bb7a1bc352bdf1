"""The shipped examples ask for what exists: their commands are parsed by the program itself."""

import configparser
import re
import shlex
from pathlib import Path

import pytest
import yaml

from experiments.batch import options, suite

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"


def nightly_commands(text: str) -> list[list[str]]:
    """Arguments of every `python -m experiments.nightly`, GitHub's expressions filled in."""
    text = re.sub(r"\$\{\{[^}]*\}\}", "123", text)
    found = re.findall(r"-m experiments\.nightly([^\n]*)", text)
    return [["nightly", *shlex.split(arguments)] for arguments in found]


def workflow() -> dict:
    return yaml.safe_load((EXAMPLES / "nightly.github.yml").read_text())


def service(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str
    parser.read_string((EXAMPLES / name).read_text())
    return parser


def all_commands() -> list[list[str]]:
    steps = workflow()["jobs"]["nightly"]["steps"]
    texts = [step["run"] for step in steps if "run" in step]
    texts.append(service("greta-nightly.service")["Service"]["ExecStart"])
    return [command for text in texts for command in nightly_commands(text)]


def test_both_examples_run_a_suite_that_loads(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = all_commands()
    assert len(commands) == 2
    for command in commands:
        asked = options.parse(command)
        assert suite.load(asked.suite, options.CHECKS).cells


def test_the_workflow_keeps_history_models_and_compiled_objects():
    steps = workflow()["jobs"]["nightly"]["steps"]
    cached = next(s for s in steps if s.get("uses", "").startswith("actions/cache"))["with"]["path"]
    assert {"~/.cache/greta-jax", "build"} <= set(cached.split())
    history = options.parse(all_commands()[0]).history
    assert str(history) in cached.split()
    upload = next(s for s in steps if "upload-artifact" in s.get("uses", ""))
    assert upload["if"] == "always()"


@pytest.mark.parametrize("name", ["greta-nightly.service", "greta-nightly.timer"])
def test_a_unit_has_a_description(name):
    assert service(name)["Unit"]["Description"]


def test_the_service_is_stopped_the_way_that_leaves_a_readable_result():
    assert service("greta-nightly.service")["Service"]["KillSignal"] == "SIGINT"
    assert service("greta-nightly.timer")["Timer"]["Persistent"] == "true"
