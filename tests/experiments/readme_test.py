"""Commands in the README are commands: the programs themselves parse every one of them."""

import re
import shlex
from pathlib import Path

import pytest

from experiments import flags
from experiments.ablation import options as ablation_options
from experiments.batch import options, suite
from experiments.report import __main__ as report_main

ROOT = Path(__file__).resolve().parent.parent.parent
MORE = {"precision_ablation": ablation_options.FLAGS}


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.partition("  #")[0].partition(" # ")[0] for line in text.splitlines()]
    found = re.findall(r"^    python -m experiments\.(.*)", "\n".join(lines), re.M)
    assert len(found) >= 10
    return [command.strip() for command in found]


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_is_understood(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(command)
    assert (ROOT / "experiments" / f"{name}.py").exists() or name == "report"
    if name == "nightly":
        asked = options.parse([name, *arguments])
        assert suite.load(asked.suite, options.CHECKS).cells
    elif name == "report":
        assert report_main.main([name, *arguments]) == flags.EXIT_USAGE  # there is no such folder
        assert len(capsys.readouterr().err.splitlines()) == 1
    else:
        values = flags.define(MORE.get(name, ()))
        assert values([name, *arguments])[1:] == []
        flags.effective(values, {}, "out")
