"""KV invariants over synthetic access logs: each one fails for the fault it is there for."""

import numpy as np
import pytest

from experiments.align.invariants import Access, Slots, check_step

LAYERS, KV_HEADS, POSITIONS, SLOT_BYTES, GUARD = 3, 2, 5, 8, 16
POSITION = 3
OFFSETS_LKS = SLOT_BYTES * np.arange(LAYERS * KV_HEADS * POSITIONS).reshape(
    LAYERS, KV_HEADS, POSITIONS
)
NBYTES = int(OFFSETS_LKS.max()) + SLOT_BYTES + GUARD
SLOTS = [Slots(kind, 0x1000, NBYTES, SLOT_BYTES, OFFSETS_LKS) for kind in "kv"]


def flagged(places):
    flags = np.zeros(NBYTES, bool)
    for layer, head, position in places:
        start = OFFSETS_LKS[layer, head, position]
        flags[start : start + SLOT_BYTES] = True
    return flags


def step(read_layer=lambda layer: layer, live=POSITION + 1, heads=KV_HEADS, at=POSITION):
    """The accesses of a step in which layer l reads the slab `read_layer(l)`."""
    every = [(layer, head) for layer in range(LAYERS) for head in range(KV_HEADS)]
    written = flagged([(layer, head, at) for layer, head in every if head < heads])
    read = flagged([(read_layer(layer), h, s) for layer, h in every for s in range(live)])
    return [Access(written.copy(), read.copy()) for _ in SLOTS]


def test_a_correct_step_holds_every_invariant():
    layers, stray = check_step(SLOTS, step(), POSITION)
    assert all(layer.ok for layer in layers) and not stray
    assert layers[1].written_slots == 2 * KV_HEADS
    assert layers[1].read_slots == 2 * KV_HEADS * (POSITION + 1)
    assert layers[1].read_at == {"k": OFFSETS_LKS[1, 0, 0], "v": OFFSETS_LKS[1, 0, 0]}
    assert layers[1].written_at["v"] == OFFSETS_LKS[1, 0, POSITION]


def test_layer_zeros_base_for_every_layer_is_seen_from_addresses_alone():
    layers, _ = check_step(SLOTS, step(read_layer=lambda layer: 0), POSITION)
    assert layers[0].ok
    assert all("k live slot never read" in layer.errors[0] for layer in layers[1:])
    assert layers[0].read_at and not layers[1].read_at


@pytest.mark.parametrize(
    "fault, error",
    [
        (dict(live=POSITION), "k live slot never read: head 0 position 3 and 1 more"),
        (dict(live=POSITION + 2), "k read beyond the live slots: head 0 position 4 and 1 more"),
        (dict(heads=1), "k slot not wholly written: head 1 position 3"),
        (dict(at=POSITION - 1), "k slot not wholly written"),
        (dict(at=POSITION - 1), "k written outside this token's slot: head 0 position 2"),
    ],
    ids=["newest_key_dropped", "reads_ahead", "one_head_unwritten", "written_early", "stray"],
)
def test_each_invariant_can_fail(fault, error):
    layers, _ = check_step(SLOTS, step(**fault), POSITION)
    assert any(found.startswith(error) for found in layers[0].errors)


def test_a_write_to_the_guard_is_reported():
    accesses = step()
    accesses[1].written[-3:] = True
    _, stray = check_step(SLOTS, accesses, POSITION)
    assert stray == ["v: 3 bytes written outside every slot"]


def test_slots_may_lie_anywhere():
    shuffled = np.random.default_rng(0).permutation(OFFSETS_LKS.ravel()).reshape(OFFSETS_LKS.shape)
    slots = [Slots(kind, 0, NBYTES, SLOT_BYTES, shuffled) for kind in "kv"]
    written, read = np.zeros(NBYTES, bool), np.zeros(NBYTES, bool)
    for start in shuffled[:, :, POSITION].ravel():
        written[start : start + SLOT_BYTES] = True
    for start in shuffled[:, :, : POSITION + 1].ravel():
        read[start : start + SLOT_BYTES] = True
    layers, stray = check_step(slots, [Access(written, read)] * 2, POSITION)
    assert all(layer.ok for layer in layers) and not stray


def test_where_reads_cannot_be_seen_nothing_is_said_of_them():
    written = np.zeros(256, bool)
    written[32:48] = True
    slots = [Slots(kind, 0, 256, 16, np.arange(8).reshape(1, 1, 8) * 16) for kind in "kv"]
    (layer,), stray = check_step(slots, [Access(written, None)] * 2, 2)
    assert layer.ok and not stray
    assert layer.read_slots is None and layer.written_slots == 2
    written[48] = True
    (layer,), _ = check_step(slots, [Access(written, None)] * 2, 2)
    assert any("k written outside this token's slot" in error for error in layer.errors)
