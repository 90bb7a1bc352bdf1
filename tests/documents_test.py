"""Every command of the README, of docs/ and of a --help is understood; those of the pages run."""

import ast
import datetime
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments import flags
from experiments.batch import options, suite
from hip_engine.gfx942 import cli
from tests.experiments import foreign_engine_test
from tests.hip_engine.gfx942 import objects
from tests.hip_engine.hip import programs

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINE = re.compile(r"^ *(?:\$ )?((?:GRETA_\w+=\S+ )?python -m (?:experiments|hip_engine)\.\S+.*)$")
SAMPLE_FOLDER = "artifacts/alignment/2026-01-31"
# Not run by this test: hours, a GPU, or a cluster that another test starts.
ELSEWHERE = ("--executor=ray", "--device=gpu", "--device=mi300x", "suites/nightly.yaml --jobs")


class Command(NamedTuple):
    """Where it stands, what comes before it, and the words after `python -m`."""

    page: str
    variables: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join((*self.variables, *self.words))


def read(page: str, text: str) -> list[Command]:
    found = []
    for line in text.splitlines():
        if not (match := LINE.match(line)):
            continue
        words = shlex.split(re.split(r"  +| # ", match[1])[0])
        start = words.index("python")
        found.append(Command(page, tuple(words[:start]), tuple(words[start + 2 :])))
    return found


def helps() -> list[Command]:
    found = []
    for path in sorted((ROOT / "experiments").glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found += read(f"{path.stem} --help", doc)
    return found


IN_PAGES = [command for page in PAGES for command in read(page.name, page.read_text("utf-8"))]
EVERYWHERE = list({command.text: command for command in (*IN_PAGES, *helps())}.values())
RUN = [
    command
    for command in {command.text: command for command in IN_PAGES}.values()
    if not any(word in command.text for word in ELSEWHERE)
]


def test_there_are_commands_to_check():
    pages = {command.page for command in IN_PAGES}
    assert pages == {page.name for page in PAGES} and len(IN_PAGES) >= 20


def main_file(module) -> str:
    path = Path(module.__file__)
    return str(path.with_name("__main__.py") if path.name == "__init__.py" else path)


@pytest.mark.parametrize("command", EVERYWHERE, ids=lambda c: c.text)
def test_a_command_is_understood(command, monkeypatch, capsys):
    module, *arguments = command.words
    monkeypatch.chdir(ROOT)
    if module == "hip_engine.gfx942":
        assert cli.parser(arguments[0]).parse_args(arguments).main
        return
    if module == "experiments.nightly":
        if (asked := options.parse([module, *arguments])).suite.is_relative_to("experiments"):
            assert suite.load(asked.suite, options.CHECKS).cells
        return
    loaded = importlib.import_module(module)
    if values := getattr(loaded, "VALUES", None):  # A benchmark's own.
        assert values([module, *arguments])[1:] == []
        return
    parsed = []

    def parse(main, doc, argv=None, more=()):
        values = flags.define(more)
        assert values(list(argv or sys.argv))[1:] == []
        parsed.append(flags.effective(values, {}, "out"))
        return flags.EXIT_PASS

    monkeypatch.setattr(flags, "run", parse)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(main_file(loaded), run_name="__main__")
    if not parsed:  # A program with flags of its own has refused its missing input in one line.
        assert ended.value.code == flags.EXIT_USAGE
        assert len(capsys.readouterr().err.splitlines()) == 1


SAXPY = """
GLOBAL k(float a, float* x) { x[bid() * 256 + tid()] += a; }
int main() {
  float* x;
  CHECK(hipMalloc((void**)&x, 4096));
  k<<<dim3(4), dim3(256), 0, 0>>>(2.0f, x);
  CHECK(hipDeviceSynchronize());
}
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder as the pages assume it: the repository, and a user's own files beside it."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("experiments", "models"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "X.co").write_bytes(objects.hip("KERNEL k(float a, float* x) { x[tid()] += a; }"))
    zeros = {"dtype": "float32", "zeros": [1024]}
    (folder / "args.json").write_text(json.dumps([2.0, zeros]))
    programs.compile_program(folder, [SAXPY])
    foreign_engine_test.write(folder / "out" / "hf")
    return folder


@pytest.mark.slow
def test_every_command_of_the_pages_does_what_the_page_says(desk, subtests):
    """In the order of the pages: what one leaves, a later one may read."""
    today = f"artifacts/alignment/{datetime.date.today().isoformat()}"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in RUN:
        words = [word.replace(SAMPLE_FOLDER, today) for word in command.words]
        variables = dict(variable.split("=") for variable in command.variables)
        with subtests.test(command.text):
            run = [sys.executable, "-m", *words]
            done = subprocess.run(
                run, cwd=desk, env=environ | variables, capture_output=True, text=True
            )
            expected = flags.EXIT_FAIL if "--inject_fault" in command.text else flags.EXIT_PASS
            assert done.returncode == expected, done.stdout[-2000:] + done.stderr[-2000:]
