"""How sure a verdict is said to be: for every verdict, from what the run measured."""

from dataclasses import replace

from experiments import certainty
from experiments.align.naming import Naming
from experiments.explain import Explained
from greta_jax.selfcheck import Finding
from tests.experiments import toy
from tests.experiments.alignment_test import alignment_of, doubled_in_layer_1, result_of

LAWS = [Finding("rotation_keeps_length", 0.3), Finding("weights_sum_to_one", 0.1)]


def said(result, **faults):
    return certainty.sentence(alignment_of(result, laws=list(LAWS), **faults))


def test_a_pass_says_how_small_an_error_it_would_have_found():
    text = said(result_of(toy.engine()))
    assert "the worst of all local errors is 0." in text
    assert "of its tensor's rms would have been found anywhere that was judged" in text
    assert "keeps 2 of 2 laws, rotation_keeps_length to 0.3 x what rounding allows" in text
    assert "the oracle replays itself to" in text


def test_a_failure_sets_its_error_beside_the_worst_that_is_clean():
    result = result_of(toy.engine(doubled_in_layer_1))
    text = said(result)
    assert "the first error is" in text and "x its floor, the worst of what is clean 0." in text
    residuals = {"twice": 0.5, "thrice": 4e6}
    named = Explained(Naming(named="twice", residuals=residuals), ())
    assert "thrice, is 4e+06 x the floor away" in said(replace(result, explained=named))
    unnamed = Explained(Naming(residuals=residuals), ())
    assert "its place is sure, its name is not" in said(replace(result, explained=unnamed))


def test_a_failure_of_no_op_says_so():
    assert "no op is to blame" in said(result_of(toy.engine(), misread_top1="7 for 3"))


def test_doubt_says_what_little_is_known():
    text = said(result_of(toy.engine(), observed="fused/valu"))
    assert "neither pass nor failure, for 1 reason above; of what could be judged" in text


def test_an_oracle_that_breaks_a_law_is_sure_of_nothing():
    broken = Finding("rotation_keeps_length", 1e9)
    text = certainty.sentence(alignment_of(result_of(toy.engine()), laws=[broken]))
    assert text.startswith("not at all")
    assert "keeps 0 of 1 laws, rotation_keeps_length to 1e+09 x" in text
