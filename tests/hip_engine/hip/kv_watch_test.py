"""KV invariants on a device that reports no accesses: from the bytes that a step changes."""

import numpy as np
import pytest

from experiments.align.invariants import check_step
from experiments.kv_watch import kv_slots, watch_step
from hip_engine.engine import Engine

PROMPT = (5, 6, 7)
PAGED = {"page_slots": 16, "sequences": 2, "max_context": 64}
# kernels/kv_append.hip, each with what the invariants must say of it.
FAULTS = {
    "also_the_slot_before": (
        "position_T[row], H) + h;",
        "position_T[row] - (position_T[row] > 0 ? h & 1 : 0), H) + h;",
        "written outside this token's slot",
    ),
    "half_a_slot": (
        "if (element >= K * H) return;",
        "if (element >= K * H || element % H >= H / 2) return;",
        "slot not wholly written",
    ),
    "the_next_slot_too": (
        "StoreElement<GRETA_CACHE>(kv.k_PKJH, slot,",
        "StoreElement<GRETA_CACHE>(kv.k_PKJH, slot + H, k_TKH[from], 1.0f);\n"
        "  StoreElement<GRETA_CACHE>(kv.k_PKJH, slot,",
        "k written outside this token's slot",
    ),
}


def watched(path, device, layout, patch=()):
    """(logits, accesses, errors) of each of two steps after a prompt."""
    engine = Engine.open(path, device, source_patch=patch, check_weights=False, **layout)
    engine.prefill(PROMPT)
    found = []
    for token in (8, 9):
        position = engine.position
        step, accesses = watch_step(engine, device, lambda: engine.step(token))  # noqa: B023
        layers, stray = check_step(kv_slots(engine.kv_geometry(), position + 1), accesses, position)
        errors = [error for layer in layers for error in layer.errors] + stray
        found.append((step.logits_V, accesses, errors))
    engine.close()
    return found


@pytest.mark.parametrize("layout", [{}, PAGED], ids=["contiguous", "paged"])
def test_changed_bytes_are_the_bytes_that_were_written(mi300x, device, quantised_path, layout):
    by_bytes = watched(quantised_path, mi300x, layout)
    by_address = watched(quantised_path, device, layout)
    for (got_V, got, errors), (ref_V, ref, _) in zip(by_bytes, by_address, strict=True):
        assert not errors
        np.testing.assert_array_equal(ref_V, got_V)  # NaN around the live slots changed nothing
        for one, other in zip(ref, got, strict=True):
            np.testing.assert_array_equal(one.written, other.written)
            assert other.read is None


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, marks=[pytest.mark.slow] * (f != "the_next_slot_too")) for f in FAULTS],
)
def test_a_kernel_that_writes_elsewhere_is_found(mi300x, quantised_path, fault):
    old, new, message = FAULTS[fault]
    steps = watched(quantised_path, mi300x, {}, [("kv_append.hip", old, new)])
    assert any(message in error for _, _, errors in steps for error in errors)
