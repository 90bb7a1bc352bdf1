"""Margins taken apart on a model whose engine is the oracle itself in the engine's precision."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import attribution, flips
from experiments.align import trace
from experiments.arithmetic import OracleArithmetic
from experiments.attribution import Margin
from experiments.flips import EXPLAINED, NOT_JUDGED, UNEXPLAINED, next_tokens
from experiments.reference import rows_of
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.taps import SITES, Taps

T, LAYERS = 21, (0, 1)
DECLARED = {site: {"store": "float32", "accumulate": "float32"} for site in SITES}
DECLARED |= {site: {"store": "float16", "accumulate": "float32"} for site in ("kv.k", "kv.v")}
LOGITS = (-1, "logits")


@pytest.fixture(scope="module")
def oracle(quantised_path):
    return Oracle.open(quantised_path, Policy.fp64())


def traced(oracle: Oracle) -> trace.Trace:
    ids = np.random.default_rng(8).integers(0, 131, T)
    taps = oracle.prefill(ids, Taps.everything()).taps
    run = trace.Run("model", "prompt", tuple(int(i) for i in ids))
    return trace.Trace(run, {place: rows_of(place[1], rows) for place, rows in taps.items()})


@pytest.fixture(scope="module")
def ref(oracle):
    return traced(oracle)


@pytest.fixture(scope="module")
def got(oracle):
    return traced(oracle.with_policy(replace(Policy.fp32(), name="engine", kv="float16")))


@pytest.fixture(scope="module")
def ops(oracle):
    return OracleArithmetic(oracle, oracle.config.dimensions, DECLARED)


def pair_at(ref, position):
    first, second = np.argsort(-np.asarray(ref.rows(*LOGITS))[position])[:2]
    return int(first), int(second)


def attribute(ops, ref, got, judged, position, pair, with_floor):
    margin = Margin(position, *pair)
    [found] = attribution.attribute(ops, ref, got, judged, [margin], with_floor)
    return found


def with_rows(side, place, rows):
    return replace(side, rows_by_place={**side.rows_by_place, place: rows})


@pytest.mark.parametrize("judged", [(0, 1), (1,), (0,), ()], ids=str)
def test_contributions_account_for_the_change(judged, ops, ref, got):
    for position in (3, T - 1):
        found = attribute(ops, ref, got, judged, position, pair_at(ref, position), False)
        # To first order: what is left over is of the order of the change squared.
        assert abs(found.sum - found.change) < 0.02 * abs(found.change), found.sentence()
        runs = [c for c in found.contributions if "not judged" in c.name]
        assert bool(runs) == (set(judged) != set(LAYERS))


@pytest.mark.parametrize("site", ["kv.k", "kv.v"])
def test_a_slot_that_a_later_step_overwrote_accounts_for_the_change(site, oracle, ops, ref):
    """An engine without any rounding, whose step 9 changes two slots of layer 1 and no other."""
    step, position = 9, T - 1
    ids = list(ref.run.token_ids_T)
    first = oracle.prefill(ids[:step], Taps.everything())
    slabs = list(getattr(first.cache, site[-1]))
    slabs[1] = slabs[1].at[jnp.array([2, 5])].multiply(1.01)
    spoilt = replace(first.cache, **{site[-1]: tuple(slabs)})
    second = oracle.prefill(ids[step:], Taps.everything(), spoilt)
    rows = {}
    for place, late in second.taps.items():
        whole = list(rows_of(place[1], first.taps[place]))
        if place[1].startswith("kv."):
            whole += [late[: t + 1] for t in range(step, T)]
        elif place[1] in ("attn.scores", "attn.probs"):
            whole += [row_NS[:, : step + t + 1] for t, row_NS in enumerate(late)]
        else:
            whole = np.concatenate([whole, late])
        rows[place] = whole
    got = trace.Trace(ref.run, rows)
    found = attribute(ops, ref, got, LAYERS, position, pair_at(ref, position), False)
    assert abs(found.sum - found.change) < 0.05 * abs(found.change), found.sentence()
    largest, *others = found.largest
    assert (largest.layer, largest.site) == (1, site)
    assert all(abs(c.margin) < 1e-6 * abs(largest.margin) for c in others)


def test_an_op_that_erred_is_the_largest_contribution(ops, ref, got):
    """An error in the last tensor of a chain, so that nothing after it has to follow."""
    position = T - 1
    logits = np.asarray(got.rows(*LOGITS)).copy()
    pair = pair_at(ref, position)
    logits[position, pair[0]] -= 0.5
    found = attribute(ops, ref, with_rows(got, LOGITS, logits), LAYERS, position, pair, False)
    assert found.largest[0].site == "logits"
    assert found.largest[0].margin == pytest.approx(-0.5, rel=1e-3)
    assert "logits -5.0" in found.sentence()


def test_honest_rounding_stays_below_the_propagated_floor(ops, ref, got):
    for position in (0, 9, T - 1):
        found = attribute(ops, ref, got, LAYERS, position, pair_at(ref, position), True)
        assert abs(found.change) < found.floor < 1e3 * abs(found.change)


def test_the_floor_grows_with_the_precision_that_is_declared(oracle, ops, ref, got):
    coarse = {**DECLARED, "attn.out": {"store": "bfloat16", "accumulate": "float32"}}
    asked = (ref, got, LAYERS, T - 1, pair_at(ref, T - 1), True)
    looser = OracleArithmetic(oracle, oracle.config.dimensions, coarse)
    assert attribute(looser, *asked).floor > attribute(ops, *asked).floor


def test_margins_that_are_taken_apart_together_are_what_each_is_alone(ops, ref, got):
    margins = [Margin(t, *pair_at(ref, t)) for t in (3, 9, T - 1)]
    for judged in (LAYERS, (1,)):
        together = attribution.attribute(ops, ref, got, judged, margins, True)
        for margin, found in zip(margins, together, strict=True):
            assert attribution.attribute(ops, ref, got, judged, [margin], True) == [found]


def flipped(ref, got, position, margin):
    """Traces in which the oracle holds two tokens `margin` apart and the engine swaps them."""
    first, second = pair_at(ref, position)
    sides = []
    for side, gap in ((ref, margin), (got, -1e-6)):
        logits = np.asarray(side.rows(*LOGITS), np.float64).copy()
        logits[position, second] = logits[position, first] - gap
        sides.append(with_rows(side, LOGITS, logits))
    return sides


def judged_flips(ops, sides, failed_at=None):
    return next_tokens(ops, *sides, LAYERS, failed_at)


def test_a_flip_within_rounding_is_explained_and_a_wider_one_is_not(ops, ref, got):
    floor = attribute(ops, ref, got, LAYERS, 7, pair_at(ref, 7), True).floor
    for margin, status in ((0.99 * floor, EXPLAINED), (1.01 * floor, UNEXPLAINED)):
        found = judged_flips(ops, flipped(ref, got, 7, margin))
        assert [flip.status for flip in found.flips] == [status]
        assert found.attributions[0].position == 7


def test_flips_after_an_unexplained_one_are_not_judged(ops, ref, got):
    sides = flipped(*flipped(ref, got, 7, 0.5), 9, 0.5)
    assert [flip.status for flip in judged_flips(ops, sides).flips] == [UNEXPLAINED, NOT_JUDGED]


def test_flips_after_a_failed_op_are_not_judged_but_for_the_first(ops, ref, got):
    sides = flipped(*flipped(ref, got, 7, 1e-9), 9, 1e-9)
    statuses = [flip.status for flip in judged_flips(ops, sides, failed_at=8).flips]
    assert statuses == [EXPLAINED, NOT_JUDGED]
    assert [flip.status for flip in judged_flips(ops, sides).flips] == [EXPLAINED] * 2


def test_many_flips_are_judged_in_few_passes(ops, ref, got, monkeypatch):
    asked = []
    monkeypatch.setattr(flips, "TOGETHER", 3)

    def noted(ops, ref, got, judged, margins, with_floor):
        asked.append(len(margins))
        return attribution.attribute(ops, ref, got, judged, margins, with_floor)

    monkeypatch.setattr(flips, "attribute", noted)
    sides = (ref, got)
    for position in (2, 5, 7, 9, 11):
        sides = flipped(*sides, position, 1e-9)
    found = judged_flips(ops, sides)
    assert [flip.status for flip in found.flips] == [EXPLAINED] * 5
    assert asked == [3, 2] and [a.position for a in found.attributions] == [2, 5, 7, 9, 11]


def test_without_a_flip_the_position_nearest_to_one_is_taken_apart(ops, ref, got):
    found = judged_flips(ops, (ref, got))
    assert not found.flips and [a.floor for a in found.attributions] == [None]
    assert found.attributions[0].position == found.tokens.closest
