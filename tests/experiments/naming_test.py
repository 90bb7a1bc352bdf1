"""Naming: only what reaches the floor, and only if nothing else comes near, is named."""

import numpy as np
import pytest

from experiments.align import naming
from experiments.align.naming import AS_IT_SHOULD_BE, Explanation, agree, decide

RNG = np.random.default_rng(2)
ROUNDING = 1e-6
RIGHT_TD = RNG.standard_normal((6, 8))
MISTAKES = {"doubled": 2 * RIGHT_TD, "negated": -RIGHT_TD, "shifted": np.roll(RIGHT_TD, 1, axis=1)}


def explained(rows, shows=""):
    return Explanation(rows, np.full(np.shape(rows), ROUNDING), shows)


def name(got_TD, **more):
    mistakes = {mistake: explained(rows) for mistake, rows in MISTAKES.items()} | more
    return naming.name(got_TD, explained(RIGHT_TD), mistakes, ("not_asked",), "look at x")


def rounded(rows):
    return rows + ROUNDING * RNG.uniform(-1, 1, rows.shape)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_known_mistake_and_rounding_is_named(mistake):
    found = name(rounded(MISTAKES[mistake]))
    assert found.named == mistake and not found.candidates
    assert found.sentence().startswith(f"named: {mistake} (")
    assert "of 3 known mistakes asked" in found.sentence()


def test_honest_rounding_is_never_named():
    found = name(rounded(RIGHT_TD), no_op=explained(RIGHT_TD))
    assert not found.named and not found.candidates


def test_an_unknown_corruption_is_none_of_the_known_mistakes():
    got_TD = RIGHT_TD.copy()
    got_TD[3, 5] += 0.5
    found = name(got_TD)
    assert not found.named and not found.candidates
    assert found.sentence() == (
        f"none of the 3 known mistakes (1 more could not be asked); nearest is {AS_IT_SHOULD_BE}, "
        "5e+05 x the floor; next: look at x"
    )


def test_a_mistake_with_one_more_wrong_element_is_not_named():
    got_TD = MISTAKES["doubled"].copy()
    got_TD[0, 0] += 1e-3
    assert not name(got_TD).named


def test_two_that_agree_on_this_input_are_both_listed_with_what_separates_them():
    twin = Explanation(2 * RIGHT_TD, np.full(RIGHT_TD.shape, ROUNDING), "at layer 2")
    found = name(rounded(2 * RIGHT_TD), twin=twin)
    assert not found.named and set(found.candidates) == {"doubled", "twin"}
    assert "cannot be told apart" in found.sentence() and "twin shows at layer 2" in found.next_step


@pytest.mark.parametrize("rival, named", [(9.9, ""), (10.1, "mistake")])
def test_the_runner_up_must_be_ten_times_worse(rival, named):
    found = decide({AS_IT_SHOULD_BE: 1e5, "mistake": 1.0, "rival": rival}, {})
    assert found.named == named
    assert set(found.candidates) == (set() if named else {"mistake", "rival"})


def test_a_small_fault_near_the_floor_is_not_taken_for_a_mistake():
    """The op as it should be is a rival too."""
    found = decide({AS_IT_SHOULD_BE: 5.0, "mistake": 0.9, "rival": 1e4}, {})
    assert not found.named and not found.candidates


def test_elements_of_which_a_mistake_says_nothing_are_left_out():
    said_TD = 2 * RIGHT_TD
    said_TD[0] = np.nan
    got_TD = rounded(2 * RIGHT_TD)
    got_TD[0] = np.nan
    assert name(got_TD, partly=explained(said_TD)).named == "partly"


def test_a_mistake_that_says_nothing_at_all_explains_nothing():
    silent = explained(np.full(RIGHT_TD.shape, np.nan))
    assert naming.residual(RIGHT_TD, silent) == float("inf")
    assert naming.residual(RIGHT_TD, explained(RIGHT_TD[:, :4])) == float("inf")


def test_a_mistake_may_say_that_elements_are_not_finite():
    said_TD, got_TD = 2 * RIGHT_TD, rounded(2 * RIGHT_TD)
    said_TD[0], got_TD[0] = np.inf, (np.nan, np.inf, -np.inf) + (np.nan,) * 5
    overflow = explained(said_TD)
    assert name(got_TD, overflow=overflow).named == "overflow"
    for element, value in ((0, 1.0), (1, np.nan)):  # One that is finite, one that is not.
        wrong_TD = got_TD.copy()
        wrong_TD[element, 0] = value
        assert naming.residual(wrong_TD, overflow) == float("inf")


def test_that_nothing_is_finite_is_no_mistakes_own():
    everywhere = explained(np.full(RIGHT_TD.shape, np.inf))
    assert naming.residual(np.full(RIGHT_TD.shape, np.nan), everywhere) == float("inf")


def test_another_place_where_the_op_failed_decides_between_two():
    here = decide({AS_IT_SHOULD_BE: 1e5, "layer 0": 0.1, "layer before": 0.1}, {})
    there = decide({AS_IT_SHOULD_BE: 1e5, "layer 0": 0.2, "layer before": 3e4}, {})
    assert len(here.candidates) == 2
    assert agree(here, [there]).named == "layer 0"
    nowhere = decide({AS_IT_SHOULD_BE: 1e5, "layer 0": 2e4, "layer before": 3e4}, {})
    neither = agree(here, [nowhere], "look at x")
    assert not neither.named and not neither.candidates and neither.next_step == "look at x"
    assert agree(here, []) == here


def test_the_record_holds_every_residual_nearest_first():
    record = name(rounded(2 * RIGHT_TD)).record()
    assert record["named"] == "doubled" and list(record["residuals_over_floor"])[0] == "doubled"
    assert set(record["residuals_over_floor"]) == {AS_IT_SHOULD_BE, *MISTAKES}
