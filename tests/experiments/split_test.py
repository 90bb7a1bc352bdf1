"""Shares of a propagated error: they add up, whatever the op, and show where an error came from."""

from itertools import combinations

import numpy as np
import pytest

from experiments.align import split
from experiments.align.verdict import Status
from tests.experiments import toy
from tests.experiments.judge_test import judge
from tests.experiments.toy import SITE

NAMES = ("attn.q_rope", "kv.k", "kv.v")
RNG = np.random.default_rng(3)
ORACLES = {name: RNG.standard_normal((4, 8)) for name in NAMES}
ENGINES = {name: x + 1e-3 * RNG.standard_normal(x.shape) for name, x in ORACLES.items()}


def attend(q, k, v):
    weight = np.exp(q @ k.T)
    return weight / weight.sum(axis=1, keepdims=True) @ v


def at_corners(op=attend, wrong=NAMES):
    def evaluate(engines):
        return op(*((ENGINES if n in engines and n in wrong else ORACLES)[n] for n in NAMES))

    sizes = range(len(NAMES) + 1)
    chosen = [frozenset(c) for size in sizes for c in combinations(NAMES, size)]
    return {corner: evaluate(corner) for corner in chosen}


def test_shares_add_up_to_what_was_propagated():
    at = at_corners()
    found = split.split(at)
    whole = at[frozenset(NAMES)] - at[frozenset()]
    np.testing.assert_allclose(sum(found.shares.values()), whole, atol=1e-15)
    assert 0 < found.closure_ratio <= 1


@pytest.mark.parametrize("name", NAMES)
def test_an_error_that_came_through_one_input_is_wholly_its_share(name):
    at = at_corners(wrong=(name,))
    found = split.split(at)
    whole = at[frozenset(NAMES)] - at[frozenset()]
    for other, share in found.shares.items():
        np.testing.assert_allclose(share, whole if other == name else 0, atol=1e-15)


def test_what_two_inputs_do_only_together_is_halved():
    found = split.split(at_corners(lambda q, k, v: q * k))
    both = (ENGINES["attn.q_rope"] - ORACLES["attn.q_rope"]) * (ENGINES["kv.k"] - ORACLES["kv.k"])
    alone = (ENGINES["attn.q_rope"] - ORACLES["attn.q_rope"]) * ORACLES["kv.k"]
    np.testing.assert_allclose(found.shares["attn.q_rope"], alone + both / 2, atol=1e-15)
    assert not found.shares["kv.v"].any()


def test_masked_scores_have_no_share():
    at = {corner: np.where(np.eye(4, 8), -np.inf, value) for corner, value in at_corners().items()}
    found = split.split(at)
    assert all(np.isfinite(share).all() for share in found.shares.values())


def test_evaluations_that_do_not_belong_together_are_noticed(monkeypatch):
    """A weight that is off by one part in a million breaks the sum."""
    monkeypatch.setattr(split, "factorial", lambda n: (1, 1 + 1e-6, 2, 6)[n])
    assert split.split(at_corners()).closure_ratio > 1


def test_a_split_that_does_not_add_up_is_not_a_pass(monkeypatch):
    monkeypatch.setattr(split, "factorial", lambda n: (1, 1 + 1e-6, 2, 6)[n])

    def inputs(trace, layer, site):
        return {
            "x": toy.inputs(trace, layer, site)["x"] / 2,
            "y": toy.inputs(trace, layer, site)["x"] / 2,
        }

    def of_two(function):
        return lambda layer, site, read: function(layer, site, {"x": read["x"] + read["y"]})

    arithmetic = toy.Arithmetic(
        inputs,
        lambda layer, site, each: [of_two(toy.op64)(layer, site, read) for read in each],
        lambda *a: {"bound": of_two(toy.bound(toy.U32))(*a)},
        of_two(toy.bound(toy.U64)),
        through=lambda site: ("x", "y") if site == SITE else (),
    )
    found = judge(toy.engine(), arithmetic=arithmetic)[1, SITE]
    assert found.status == Status.INCONCLUSIVE and "does not add up" in found.worst.reason
    monkeypatch.undo()
    assert judge(toy.engine(), arithmetic=arithmetic)[1, SITE].status == Status.WITHIN_FLOOR
