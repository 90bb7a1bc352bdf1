"""Where the time went: every second is counted once."""

import time
from types import SimpleNamespace

import pytest

from experiments.progress import Clock


def test_a_stage_within_a_stage_is_counted_once():
    clock = Clock()
    with clock.stage("outer"):
        with clock.stage("inner"):
            time.sleep(0.02)
    assert clock.seconds["inner"] >= 0.02
    assert clock.seconds["outer"] < clock.seconds["inner"]
    assert sum(clock.seconds.values()) <= clock.total


def test_watched_functions_are_stages_and_are_put_back():
    clock, owner = Clock(), SimpleNamespace(double=lambda x: 2 * x)
    original = owner.double
    with clock.watching([(owner, "double", "doubling")]):
        assert owner.double(21) == 42 and owner.double(1) == 2
    assert owner.double is original and "doubling" in clock.seconds


def test_a_stage_that_raises_is_counted_and_functions_are_put_back():
    clock, owner = Clock(), SimpleNamespace(fail=lambda: 1 / 0)
    original = owner.fail
    with pytest.raises(ZeroDivisionError):
        with clock.watching([(owner, "fail", "failing")]):
            owner.fail()
    assert owner.fail is original and "failing" in clock.seconds


def test_long_steps_say_how_far_they_are(capsys):
    clock = Clock()
    with clock.counted("steps", "of a walk") as progress:
        for done in range(1, 11):
            progress(done, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"... steps of a walk {done}/10" for done in (2, 4, 6, 8, 10)]
