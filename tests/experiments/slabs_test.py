"""A cache judged by the rows that its slabs grew by says what judging every slab whole says."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from experiments.align import compare, parts
from experiments.align.compare import Arithmetic, Declared, captured
from experiments.align.slabs import GrowingSlabs
from experiments.align.trace import Run, Trace
from experiments.align.verdict import CLEAN, Status

T, K, H = 9, 2, 4
SITE = "kv.k"
RUN = Run("model", "prompt", tuple(range(20, 20 + T)))
DECLARED = Declared(dims={"K": K, "H": H}, stores={SITE: "float16"})
RNG = np.random.default_rng(11)
REF_TKH = RNG.standard_normal((T, K, H))
GOT_TKH = (REF_TKH + 1e-3 * RNG.standard_normal((T, K, H))).astype(np.float32)
U16 = np.finfo(np.float16).eps / 2


def inputs(trace, layer, site):
    return {
        "rows": trace.rows(0, "attn.k_rope"),
        "slabs": captured(trace, layer, site, DECLARED.dims),
    }


def kept(read):
    return lambda t: read["slabs"][t - 1] if t else read["slabs"][0][:0]


def nothing(t):
    return np.zeros((t, K, H))


ARITHMETIC = Arithmetic(
    inputs,
    op64=lambda layer, site, each: [
        GrowingSlabs(read["rows"].astype(np.float64), kept(read)) for read in each
    ],
    floor=lambda layer, site, read: {"bound": GrowingSlabs(U16 * np.abs(read["rows"]), nothing)},
    closure=lambda layer, site, read: GrowingSlabs(1e-16 * np.abs(read["rows"]), nothing),
    declared=lambda layer, site, read: compare.RoundingModel(
        GrowingSlabs(read["rows"].astype(np.float16), kept(read))
    ),
    bits=lambda layer, site, read: GrowingSlabs(read["rows"].astype(np.float16), kept(read)),
)


def whole(rows):
    """The same slabs, of which nothing says how they grew."""
    return list(rows) if isinstance(rows, GrowingSlabs) else rows


WHOLE = replace(
    ARITHMETIC,
    op64=lambda *asked: [whole(rows) for rows in ARITHMETIC.op64(*asked)],
    floor=lambda *asked: {"bound": whole(ARITHMETIC.floor(*asked)["bound"])},
    closure=lambda *asked: whole(ARITHMETIC.closure(*asked)),
    declared=lambda *asked: compare.RoundingModel(whole(ARITHMETIC.declared(*asked).rows)),
    bits=lambda *asked: whole(ARITHMETIC.bits(*asked)),
)


def slabs_of(rows_TKH, fault):
    """The cache after every step; `fault(t, cache)` may spoil it after step t stored its row."""
    cache, steps = np.zeros((T, K, H), rows_TKH.dtype), []
    for t in range(T):
        cache[t] = rows_TKH[t]
        fault(t, cache)
        steps.append(cache[: t + 1].copy())
    return steps


def judged(arithmetic, fault=lambda t, cache: None):
    ref = Trace(RUN, {(0, SITE): slabs_of(REF_TKH, lambda t, cache: None)})
    stored_TKH = GOT_TKH.astype(np.float16).astype(np.float32)
    got = Trace(RUN, {(0, SITE): slabs_of(stored_TKH, fault)})
    rows = {(0, "attn.k_rope"): REF_TKH}, {(0, "attn.k_rope"): GOT_TKH}
    ref, got = (
        replace(side, rows_by_place=dict(side.rows_by_place) | more)
        for side, more in zip((ref, got), rows, strict=True)
    )
    return compare.judge_site(ref, got, arithmetic, DECLARED, 0, SITE)


def at(step, change):
    def fault(t, cache):
        if t == step:
            change(cache)

    return fault


def put(*place, value):
    def change(cache):
        cache[place] = value

    return change


def double(slot):
    def change(cache):
        cache[slot] *= 2

    return change


FAULTS = {
    "honest": lambda t, cache: None,
    "a_row_stored_wrong": at(4, double(4)),
    "an_element_slightly_wrong": at(4, put(4, 1, 2, value=np.float32(np.float16(1.5)))),
    "a_slot_overwritten_later": at(6, double(2)),
    "overwritten_with_what_no_float16_is": at(5, put(1, 0, 0, value=np.float32(1 + 2**-20))),
    "a_row_of_another_dtype": at(3, put(3, 0, 1, value=np.float32(1 + 2**-20))),
    "nan_in_a_row": at(3, put(3, 1, 0, value=np.nan)),
    "nan_over_an_earlier_slot": at(7, put(0, 1, 0, value=np.nan)),
    "nan_that_the_next_step_repairs": at(3, put(3, value=np.nan)),
    "everything_overwritten_at_every_step": lambda t, cache: double(slice(0, t))(cache),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("elements", [parts.ELEMENTS, 2 * K * H], ids=["one_part", "several"])
def test_rows_tell_what_whole_slabs_tell(fault, elements, monkeypatch):
    monkeypatch.setattr(parts, "ELEMENTS", elements)
    grown, plain = judged(ARITHMETIC, fault), judged(WHOLE, fault)
    for ours, theirs in zip(grown.judgements, plain.judgements, strict=True):
        _assert_equal(asdict(ours), asdict(theirs))
    for ours, theirs in zip(grown.ratios, plain.ratios, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _assert_equal(ours, theirs):
    """Every word and index; numbers to the rounding of sums in another order."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, dict):
            _assert_equal(value, theirs[name])
        elif isinstance(value, float):
            np.testing.assert_allclose(value, theirs[name], rtol=1e-12, err_msg=name)
        else:
            assert value == theirs[name], name


def test_an_honest_cache_is_measured_a_row_at_a_time(monkeypatch):
    sizes = []
    measure = parts.numbers.measure
    monkeypatch.setattr(
        parts.numbers, "measure", lambda case: sizes.append(case.got.size) or measure(case)
    )
    assert {j.status for j in judged(ARITHMETIC).judgements} <= CLEAN
    assert sum(sizes) == T * K * H


def test_a_slot_overwritten_later_is_the_fault_of_that_step_alone():
    statuses = [j.status for j in judged(ARITHMETIC, FAULTS["a_slot_overwritten_later"]).judgements]
    assert statuses[6] is Status.STRUCTURAL
    assert {*statuses[:6], *statuses[7:]} <= CLEAN
