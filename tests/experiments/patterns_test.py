"""Patterns of an error map: each predicate on a map that has it, and on one that has not."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.align import patterns, slot_patterns
from experiments.align.patterns import ErrorMap

T, N, H, G = 48, 8, 16, 4
RNG = np.random.default_rng(4)
RIGHT = RNG.standard_normal((T, N, H))
FLOOR = np.full(RIGHT.shape, 1e-6)
ROUNDED = RIGHT + FLOOR * RNG.uniform(-0.9, 0.9, RIGHT.shape)


def at(*index):
    got = ROUNDED.copy()
    got[index] += RNG.uniform(0.5, 2, got[index].shape)
    return got


def tiles(change):
    flat = ROUNDED.reshape(T, -1).copy()
    for t in range(0, T, 16):
        for e in range(0, N * H, 16):
            flat[t : t + 16, e : e + 16] = change(flat[t : t + 16, e : e + 16])
    return flat.reshape(RIGHT.shape)


def a_map(got, **facts):
    return ErrorMap("attn.q", got, RIGHT, FLOOR, G=G, **facts)


EVERYWHERE = at(...)
SHUFFLED = RNG.permutation(256)
NAN = ROUNDED.copy()
NAN[3, 2, 1] = np.nan
ZEROED = ROUNDED.copy()
ZEROED[5] = 0

SHOWN = {
    "one element is not finite": (NAN, "not_finite", "1 of 6144 elements are not finite"),
    "rows from 32": (at(slice(32, None)), "some_positions", "positions >= 32"),
    "first token": (at(0), "some_positions", "only positions 0"),
    "all but the first two": (at(slice(2, None)), "some_positions", "positions >= 2"),
    "all but one in the middle": (
        *(at([t for t in range(T) if t != 7]), "some_positions"),
        "all positions but 7",
    ),
    "one head group": (at(slice(None), slice(4, 8)), "some_heads", "only head groups 1"),
    "one head": (at(slice(None), 2), "some_heads", "only heads 2"),
    "all but head 0": (at(slice(None), slice(1, None)), "some_heads", "heads >= 1"),
    "odd elements": (at(..., slice(1, None, 2)), "some_elements", "only odd elements"),
    "second half of a head": (at(..., slice(8, 16)), "some_elements", "elements >= 8"),
    "one row of zeros": (ZEROED, "all_zero", "everything wrong is zero"),
    "doubled": (2 * ROUNDED, "constant_ratio", "2 times the right values"),
    "a ratio a head": (
        *(ROUNDED * np.arange(1, N + 1)[:, None], "constant_ratio"),
        "one ratio a head: 1, 2, 3, 4, 5, 6, 7, 8",
    ),
    "one token late": (
        *(np.roll(ROUNDED, 1, axis=0), "shifted_by_a_token"),
        "every row is that of the token before",
    ),
    "two heads exchanged": (
        *(ROUNDED[:, [1, 0, 2, 3, 4, 5, 6, 7]], "permuted_heads"),
        "heads hold the values of heads 1, 0, 2, 3, 4, 5, 6, 7",
    ),
    "tiles transposed": (
        *(tiles(np.transpose), "permuted_in_tiles"),
        "24 of 24 tiles of 16x16 are transposed",
    ),
    "tiles shuffled": (
        *(tiles(lambda x: x.ravel()[SHUFFLED].reshape(16, 16)), "permuted_in_tiles"),
        "24 of 24 tiles of 16x16 are permuted within",
    ),
    "halves for pairs": (
        *(ROUNDED.reshape(T, N, 2, 8).swapaxes(2, 3).reshape(T, N, H), "permuted_in_rows"),
        "each row holds its own right values in another order",
    ),
}


@pytest.mark.parametrize("case", SHOWN)
def test_a_pattern_is_seen_where_it_is(case):
    got, predicate, phrase = SHOWN[case]
    assert getattr(patterns, predicate)(a_map(got)) == phrase
    assert phrase in patterns.find(a_map(got))


@pytest.mark.parametrize("predicate", [p.__name__ for p in patterns.PREDICATES])
def test_a_pattern_is_not_seen_in_an_error_that_is_everywhere(predicate):
    got = at(...) * RNG.uniform(1, 2, RIGHT.shape)
    everywhere = a_map(got, failed=(0, 1), judged=(0, 1))
    assert everywhere.wrong.all()
    assert getattr(patterns, predicate)(everywhere) == ""


def test_every_predicate_is_shown_by_a_case():
    shown = {predicate for _, predicate, _ in SHOWN.values()} | {"some_layers"}
    assert shown == {predicate.__name__ for predicate in patterns.PREDICATES}


@pytest.mark.parametrize(
    "failed, judged, phrase",
    [
        ((1, 2, 31), (0, 1, 2, 31), "all judged layers but 0"),
        ((2,), (0, 1, 2, 31), "only layers 2 of those judged"),
        ((0, 1), (0, 1), ""),
    ],
)
def test_layers_that_are_wrong(failed, judged, phrase):
    assert patterns.some_layers(a_map(EVERYWHERE, failed=failed, judged=judged)) == phrase


def test_honest_rounding_has_no_pattern():
    assert patterns.find(a_map(ROUNDED, failed=(1,), judged=(0, 1))) == ()


def test_kv_heads_are_heads_and_a_plain_row_has_none():
    assert patterns.some_heads(replace(a_map(at(slice(None), 2)), site="attn.k")) == "only heads 2"
    flat = [a.reshape(T, -1) for a in (at(slice(None), 2), RIGHT, FLOOR)]
    row = ErrorMap("attn.norm", *flat)
    assert patterns.some_heads(row) == ""
    assert patterns.some_elements(row) == "only blocks of 16 elements from 32"


def test_of_the_cache_the_newest_slots_are_looked_at():
    slabs = [ROUNDED[: t + 1] for t in range(T)]
    found = patterns.error_map(
        *("kv.k", slabs), [RIGHT[: t + 1] for t in range(T)], [FLOOR[: t + 1] for t in range(T)]
    )
    np.testing.assert_array_equal(found.got, ROUNDED)


def test_ranges_read_well():
    assert patterns.ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


LIVE = np.tri(T, dtype=bool)
AGE = np.subtract.outer(np.arange(T), np.arange(T))
SLOT = np.arange(T) + 0 * AGE

SLOT_CASES = {
    "newest": (AGE == 0, "only the newest slot"),
    "newest_missing": (AGE > 0, "all slots but the newest"),
    "window": (AGE < 5, "only the newest 5 slots"),
    "before_a_window": (AGE >= 20, "only slots more than 19 before the newest"),
    "one_back": (AGE == 1, "only slots 1 before the newest"),
    "from_32": (SLOT >= 32, "slots >= 32"),
    "a_page_of_16": ((SLOT >= 16) & (SLOT < 32), "only tiles of 16 slots from 16"),
    "first": (SLOT == 0, "only slots 0"),
    "everything": (SLOT >= 0, "every live slot"),
}


def scores_wrong_at(wrong):
    right = [RNG.standard_normal((N, t + 1)) for t in range(T)]
    floor = [np.full(row.shape, 1e-6) for row in right]
    got = [row + 0.1 * wrong[t, : t + 1] for t, row in enumerate(right)]
    return got, right, floor


@pytest.mark.parametrize("wrong, phrase", SLOT_CASES.values(), ids=SLOT_CASES)
def test_slots_that_are_wrong_are_named(wrong, phrase):
    found = slot_patterns.slot_map("attn.scores", *scores_wrong_at(wrong))
    assert (found == (wrong & LIVE)).all()
    assert phrase in slot_patterns.find(found)


def test_clean_slots_have_no_pattern_and_other_sites_no_slots():
    rows = scores_wrong_at(np.zeros((T, T), bool))
    assert slot_patterns.find(slot_patterns.slot_map("attn.probs", *rows)) == ()
    assert slot_patterns.slot_map("attn.out", ROUNDED, RIGHT, FLOOR) is None


def test_slots_of_a_cache_are_those_of_every_step():
    slabs = [RNG.standard_normal((t + 1, 2, H)) for t in range(T)]
    spoiled = [slab.copy() for slab in slabs]
    for slab in spoiled[7:]:
        slab[3] += 1
    floor = [np.full(slab.shape, 1e-6) for slab in slabs]
    found = slot_patterns.slot_map("kv.k", spoiled, slabs, floor)
    assert slot_patterns.find(found) == ("only slots 3",)
    appended = [slab[-1:] for slab in slabs]
    assert slot_patterns.slot_map("kv.k", appended, appended, [f[-1:] for f in floor]) is None


def test_heads_of_scores_are_seen_beside_their_slots():
    got, right, floor = scores_wrong_at(np.zeros((T, T), bool))
    got = [row + 0.1 * (np.arange(N) >= 4)[:, None] for row in got]
    found = patterns.find(patterns.error_map("attn.scores", got, right, floor, G=G))
    assert "only head groups 1" in found
