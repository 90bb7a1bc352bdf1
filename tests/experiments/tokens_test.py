"""Next tokens: divergences and margins on logits whose answers are known."""

import numpy as np
import pytest

from experiments.align import tokens

T, V = 6, 40
REF = np.random.default_rng(1).standard_normal((T, V))
TOP = REF.argmax(axis=1)


def compare(got):
    return tokens.compare(REF, got)


def test_the_same_logits_differ_in_nothing():
    found = compare(REF)
    assert found.kl.mean == found.kl.max == 0 and not found.flips
    assert found.same_top1_T.all() and (found.shared_top_k_T == tokens.TOP_K).all()
    assert not found.margin_change_T.any()


def test_kl_is_that_of_two_known_distributions_and_a_shift_changes_nothing():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    expected = float((p * np.log(p / q)).sum())
    found = tokens.compare(np.log(p)[None], np.log(q)[None] + 7)
    np.testing.assert_allclose(found.kl_T, [expected])
    assert np.isinf(found.kl.error), "one token has no spread"


def test_the_standard_error_is_that_of_a_mean():
    got = REF + np.random.default_rng(2).standard_normal(REF.shape)
    found = compare(got)
    assert found.kl.error == pytest.approx(np.std(found.kl_T, ddof=1) / np.sqrt(T))
    assert found.kl.max == found.kl_T[found.kl.at] == found.kl_T.max()


def test_a_flip_says_what_the_oracle_thought_of_the_two_tokens():
    got = REF.copy()
    second = np.argsort(-REF[2])[1]
    got[2, second] += 100
    [flip] = compare(got).flips
    assert (flip.position, flip.ref, flip.got) == (2, TOP[2], second)
    assert flip.margin == pytest.approx(REF[2, TOP[2]] - REF[2, second])
    assert compare(got).closest == 2


def test_logits_that_are_not_finite_are_infinitely_far():
    got = REF.copy()
    got[3, 5] = np.nan
    found = compare(got)
    assert np.isinf(found.kl.max) and found.kl.at == 3
    assert not np.isnan(found.margin_change_T).any()
    assert [flip.position for flip in found.flips] == [3]
