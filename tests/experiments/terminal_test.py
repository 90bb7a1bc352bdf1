"""What a run says while it runs and at its end: on a terminal, in a pipe, as JSON, and quietly."""

import io
import json
import sys

import pytest
from rich.console import Console

from experiments import b3_20, flags, progress

ARGUMENTS = ("--prompt=p0_short", "--layers=0", "--max_tokens=1")
ESCAPE = "\x1b"


@pytest.fixture(autouse=True)
def own_cache_of_estimates(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "stages_file", lambda: tmp_path / "stages.json")


def run(out_dir, *arguments):
    argv = ["b3_20.py", f"--out_dir={out_dir}", *ARGUMENTS, *arguments]
    return flags.run(b3_20.main, b3_20.__doc__, argv)


def test_json_is_the_only_thing_on_stdout_and_equals_the_run_file(tmp_path, capsys):
    code = run(tmp_path, "--output_format=json")
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert record == json.loads((tmp_path / "b3_20_run.json").read_text())
    assert record["exit_code"] == code == flags.EXIT_PASS and record["verdict"] == "PASS"
    assert record["command"].endswith("--max_tokens=1")
    assert "... oracle pass p0_short" in shown.err and ESCAPE not in shown.err


def test_quiet_is_one_line_for_a_pass_and_pipes_have_no_colour(tmp_path, capsys):
    assert run(tmp_path, "--quiet") == flags.EXIT_PASS
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out == "b3_20: PASS (exit 0), 1 of 32 layers judged\n"
    assert (tmp_path / "b3_20.html").stat().st_size > 0


def test_an_unknown_output_format_is_refused(tmp_path, capsys):
    assert run(tmp_path, "--output_format=yaml") == flags.EXIT_USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


class Ticks:
    """A clock for tests: every look at it is later by `step` seconds."""

    def __init__(self, monkeypatch, step):
        self.now, self.step = 0.0, step
        monkeypatch.setattr(progress.time, "perf_counter", self)

    def __call__(self):
        self.now += self.step
        return self.now


def test_a_long_stage_says_how_long_it_took_the_last_time(monkeypatch, capsys):
    Ticks(monkeypatch, step=7.0)
    for expected in ("... oracle pass p4_sys\n", "... oracle pass p4_sys, about 7 s\n"):
        with progress.Clock().stage("oracle pass", "p4_sys"):
            pass
        assert capsys.readouterr().err == expected


def test_a_counted_stage_says_how_long_it_still_takes(monkeypatch, capsys):
    Ticks(monkeypatch, step=10.0)
    with progress.Clock().counted("engine steps", "p4_sys") as done:
        for n in range(1, 11):
            done(n, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "... engine steps p4_sys 2/10, about 80 s left"
    assert lines[-1] == "... engine steps p4_sys 10/10" and len(lines) == progress.LINES


def test_a_terminal_gets_a_live_bar_with_an_estimate(monkeypatch):
    screen = io.StringIO()
    clock = progress.Clock()
    clock._console = Console(file=screen, force_terminal=True, width=100)
    with clock.counted("engine steps", "p4_sys") as done:
        done(3, 12)
    assert "engine steps p4_sys" in screen.getvalue() and "3/12" in screen.getvalue()
    assert ESCAPE in screen.getvalue()


def test_a_broken_cache_of_estimates_costs_only_the_estimate(tmp_path, capsys):
    (tmp_path / "stages.json").write_text("[1, 2")
    with progress.Clock().stage("oracle load"):
        pass
    assert capsys.readouterr().err == "... oracle load\n"


def test_a_quiet_clock_still_counts(capsys):
    clock = progress.Clock(quiet=True)
    with clock.stage("oracle load"), clock.counted("engine steps", "p4_sys") as done:
        done(1, 1)
    assert capsys.readouterr().err == "" and set(clock.seconds) == {"oracle load", "engine steps"}
    assert "rich" in sys.modules
