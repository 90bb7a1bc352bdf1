"""Faults of a cache: a toy writer that errs in known ways, and what values and addresses tell."""

import numpy as np
import pytest

from experiments.align import cache_blame
from experiments.align.cache_blame import OVERWRITTEN, READ, WRITTEN
from experiments.align.compare import SiteVerdict
from experiments.align.floors import ratio
from experiments.align.invariants import Access, Slots, check_step
from experiments.align.trace import Run, Trace
from experiments.align.verdict import Judgement, Status

T, K, H, LAYERS = 6, 2, 4, 2
RUN = Run("model", "prompt", tuple(range(40, 40 + T)))
RNG = np.random.default_rng(3)
K_ROPE = [RNG.standard_normal((T, K, H)).astype(np.float32) for _ in range(LAYERS)]
STORES = {"kv.k": "float16"}


def slabs_of(write):
    """The cache after every step; `write(cache, layer, t, row)` stores as it likes."""
    cache = np.zeros((LAYERS, T + 2, K, H), np.float32)
    steps = [[] for _ in range(LAYERS)]
    for t in range(T):
        for layer in range(LAYERS):
            write(cache, layer, t, K_ROPE[layer][t].astype(np.float16).astype(np.float32))
            steps[layer].append(cache[layer, : t + 1].copy())
    return steps


def rightly(cache, layer, t, row_KH):
    cache[layer, t] = row_KH


def found_in(write):
    steps = slabs_of(write)
    rows = {(layer, "kv.k"): steps[layer] for layer in range(LAYERS)}
    rows |= {(layer, "attn.k_rope"): K_ROPE[layer] for layer in range(LAYERS)}
    verdicts = []
    for layer in range(LAYERS):
        ratios = []
        for t, slab in enumerate(steps[layer]):
            kept = steps[layer][t - 1] if t else slab[:0]
            right = np.concatenate([kept, K_ROPE[layer][t : t + 1].astype(np.float64)])
            floor = np.concatenate([np.zeros(kept.shape), np.full((1, K, H), 4e-3)])
            ratios.append(ratio(slab - right, floor))
        judgements = [Judgement(RUN.key(t, layer, "kv.k"), Status.EXACT, "") for t in range(T)]
        verdicts.append(SiteVerdict(layer, "kv.k", tuple(judgements), tuple(ratios)))
    return cache_blame.find(verdicts, Trace(RUN, rows), STORES, [])


def test_a_cache_that_is_written_rightly_has_no_fault():
    assert found_in(rightly) == []


def test_a_row_of_another_layer_is_written_wrong_and_its_source_is_told():
    def write(cache, layer, t, row_KH):
        cache[layer, t] = K_ROPE[0][t].astype(np.float16)

    [fault] = found_in(write)
    assert (fault.kind, fault.layer, fault.slot, fault.head) == (WRITTEN, 1, 0, 0)
    assert (fault.step, fault.token_id, fault.count) == (0, 40, T * K)
    assert fault.holds == "attn.k_rope of layer 0, token 0, head 0"


def test_a_slot_overwritten_later_names_the_step_and_what_it_wrote():
    def write(cache, layer, t, row_KH):
        cache[layer, t] = row_KH
        if (layer, t) == (1, 4):
            cache[0, 2, 1] = row_KH[1]

    [fault] = found_in(write)
    # Layer 0 of step 4 was seen before layer 1 of step 4 wrote: step 5 finds it.
    assert (fault.kind, fault.layer, fault.slot, fault.head) == (OVERWRITTEN, 0, 2, 1)
    assert fault.holds == "attn.k_rope of layer 1, token 4, head 1"
    assert (
        "K cache of layer 0, slot 2, kv head 1, of token 2, overwritten later" in fault.sentence()
    )


@pytest.mark.parametrize(
    "value, holds", [(0, "zeros"), (np.nan, "not finite"), (0.5, "none of the captured")]
)
def test_what_nothing_wrote_is_said_to_be_that(value, holds):
    def write(cache, layer, t, row_KH):
        cache[layer, t] = row_KH if t != 3 else value

    faults = found_in(write)
    assert {(f.kind, f.slot, f.step) for f in faults} == {(WRITTEN, 3, 3)}
    assert all(holds in f.holds for f in faults)


def watched(position, change):
    """Invariants of one step whose accesses `change(read_LKS, written_LKS)` spoils."""
    slots = T + 2
    offsets = np.arange(LAYERS * K * slots).reshape(LAYERS, K, slots) * H
    read, written = (np.zeros(offsets.shape, bool) for _ in range(2))
    read[..., : position + 1] = written[..., position] = True
    change(read, written)
    of = [Slots(kind, 0, offsets.size * H, H, offsets) for kind in "kv"]
    access = Access(*(np.repeat(flags.ravel(), H) for flags in (written, read)))
    return [check_step(of, [access, access], position)[0]]


def by_addresses(change):
    return cache_blame.find([], Trace(RUN, {}), STORES, watched(4, change))


def test_addresses_tell_what_values_cannot():
    assert by_addresses(lambda read, written: None) == []

    def unread(read, written):
        read[1, :, :] = False

    found = by_addresses(unread)
    assert {(f.kind, f.cache, f.layer) for f in found} == {(READ, "k", 1), (READ, "v", 1)}
    assert found[0].count == 5 * K and "not read in step 4 (token 44)" in found[0].sentence()

    def stray(read, written):
        written[0, 1, 2] = True

    found = by_addresses(stray)
    assert {(f.kind, f.layer, f.slot, f.head) for f in found} == {(OVERWRITTEN, 0, 2, 1)}

    def beyond(read, written):
        read[0, 0, 6] = True

    assert {f.holds for f in by_addresses(beyond)} == {"read though no token had filled it"}

    def lost(read, written):
        written[0] = False

    assert {(f.kind, f.slot) for f in by_addresses(lost)} == {(WRITTEN, 4)}
