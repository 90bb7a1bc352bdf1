"""The tester's score: faults are found, placed and named, decoys do not fire, and both can fail."""

import re

import pytest

from experiments import flags, mutation, mutation_score
from experiments.align import faults, records
from experiments.mutation import Score
from experiments.report import pages, run_file

ARGUMENTS = ("--prompt=p0_short", "--layers=0,1,2")
HERE = "--jobs=1"
"""In this process, whose faults a test may change."""


def run(out_dir, *arguments):
    argv = ["mutation_score.py", f"--out_dir={out_dir}", *ARGUMENTS, *arguments]
    return flags.run(mutation_score.main, mutation_score.__doc__, argv, mutation_score.MORE)


def test_the_quick_subset_is_found_placed_and_named(tmp_path, capsys):
    assert run(tmp_path, "--faults=quick", HERE) == flags.EXIT_PASS
    text = capsys.readouterr().out
    assert "detected 5 of 5, placed 5 of 5, named 5 of 5 (4 as a hypothesis, 1 in the words" in text
    assert "named wrongly 0" in text and "decoys fired 0 of 1" in text
    scores = [r for r in records.read(tmp_path / "mutation_score.jsonl") if "name" in r]
    assert {r["name"] for r in scores} == set(faults.QUICK)
    page = pages.page(run_file.read(tmp_path / "mutation_score_run.json"))
    assert page.verdict == "PASS" and page.sentences[0].startswith("detected 5 of 5")
    assert [row[-1] for row in page.sections[0].table.rows] == ["yes"] * len(faults.QUICK)


@pytest.mark.slow
def test_the_whole_corpus_is_found_placed_and_named(tmp_path, capsys):
    assert run(tmp_path, "--prompt=p5_ba", "--faults=all") == flags.EXIT_PASS
    found = re.search(r"named (\d+) of (\d+)", capsys.readouterr().out)
    assert int(found[1]) >= 0.9 * int(found[2])


def test_a_fault_that_is_misplaced_and_a_decoy_that_fires_fail_the_score(
    tmp_path, monkeypatch, capsys
):
    swapped = faults.FAULTS["gate_and_up_swapped"]
    elsewhere = vars(swapped) | {"name": "elsewhere", "found_at": (1, "ffn.act"), "named": "x"}
    firing = vars(swapped) | {"name": "firing", "found_at": faults.NOWHERE, "named": ""}
    for kind in (elsewhere, firing):
        monkeypatch.setitem(faults.FAULTS, kind["name"], faults.Fault(**kind))
    assert run(tmp_path, "--faults=elsewhere,firing", HERE) == flags.EXIT_FAIL
    text = capsys.readouterr().out
    assert "detected 1 of 1, placed 0 of 1, named 0 of 1" in text
    assert "named wrongly 2" in text and "decoys fired 1 of 1" in text
    assert "not as they must be: elsewhere, firing" in text
    assert "mutation_score: FAIL (exit 1)" in text


def test_an_unknown_fault_is_refused_before_anything_runs(tmp_path, capsys):
    assert run(tmp_path, "--faults=quick,no_such") == flags.EXIT_USAGE
    assert "unknown fault 'no_such'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, ok",
    [
        ({}, True),
        ({"detected": False}, False),
        ({"placed": False}, False),
        ({"named_wrong": True}, False),
        ({"decoy": True}, False),
        ({"decoy": True, "detected": False}, True),
    ],
)
def test_what_a_score_asks_of_a_fault_and_of_a_decoy(changes, ok):
    facts = dict(decoy=False, detected=True, placed=True)
    facts |= dict(named_right=False, named_wrong=False, said=False)
    one = Score(name="gate_and_up_swapped", named="", seconds=1.0, seen="", **(facts | changes))
    assert one.ok == ok
    assert mutation.totals([one])[0].startswith("detected")
