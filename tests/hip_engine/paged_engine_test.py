"""Several sequences, pages and sharing, on a small random model."""

import numpy as np
import pytest

from hip_engine.engine import Engine
from hip_engine.errors import EngineError, OutOfPages, UnknownSequence
from hip_engine.kv_types import KV_TYPES
from hip_engine.taps import Taps

PAGED = {"sequences": 4, "page_slots": 16, "max_context": 64, "pages": 8}
PROMPTS = {0: [5, 6, 7], 1: list(range(20, 41)), 2: [99]}


@pytest.fixture(scope="module", params=["manual/valu", "fused/mfma"])
def route(request):
    return request.param


@pytest.fixture(scope="module")
def alone(quantised_path, device, route):
    """What a contiguous cache with one sequence gives for every prompt and one more token."""
    engine = Engine.open(quantised_path, device, route=route, max_context=64)
    results = {}
    for sequence, prompt in PROMPTS.items():
        engine.reset()
        steps = [*engine.prefill(prompt), engine.step(50 + sequence)]
        results[sequence] = [step.logits_V for step in steps]
    engine.close()
    return results


@pytest.fixture
def engine(quantised_path, device, route):
    opened = Engine.open(quantised_path, device, route=route, **PAGED)
    yield opened
    opened.close()


def fill(engine):
    """Opens and prefills every prompt's sequence."""
    for sequence, prompt in PROMPTS.items():
        assert sequence == 0 or engine.open_sequence() == sequence
        engine.prefill(prompt, sequence=sequence)


def contents(engine, device):
    geometry = engine.kv_geometry()
    return [device.read(b, np.dtype(np.uint8), b.nbytes) for b in (geometry.k, geometry.v)]


def test_a_batch_of_any_lengths_has_the_bits_of_each_sequence_alone(engine, alone):
    fill(engine)
    steps = engine.decode({sequence: 50 + sequence for sequence in PROMPTS})
    for sequence, step in steps.items():
        assert step.position == len(PROMPTS[sequence])
        np.testing.assert_array_equal(step.logits_V, alone[sequence][-1])


def test_a_batched_step_writes_the_new_slots_and_reads_the_live_ones(engine, device):
    fill(engine)
    with device.watch() as log:
        engine.decode({sequence: 50 + sequence for sequence in PROMPTS})
    geometry = engine.kv_geometry()
    for buffer in (geometry.k, geometry.v):
        written, live = np.zeros((2, buffer.nbytes), bool)
        for sequence, prompt in PROMPTS.items():
            for layer, head, slot in np.ndindex(
                geometry.layers, geometry.kv_heads, len(prompt) + 1
            ):
                at = geometry.offset_bytes(layer, head, slot, sequence)
                live[at : at + geometry.slot_bytes] = True
                if slot == len(prompt):
                    written[at : at + geometry.slot_bytes] = True
        np.testing.assert_array_equal(log.written(buffer), written)
        np.testing.assert_array_equal(log.read(buffer), live)


@pytest.mark.parametrize("poison", [0x7F, 0xFF, 0x5A], ids=["nan", "minus_nan", "large"])
def test_bytes_that_no_sequence_owns_do_not_matter(engine, device, alone, poison):
    fill(engine)
    geometry = engine.kv_geometry()
    for buffer, held in zip((geometry.k, geometry.v), contents(engine, device), strict=True):
        owned = np.zeros(buffer.nbytes, bool)
        for sequence, prompt in PROMPTS.items():
            for layer, head, slot in np.ndindex(geometry.layers, geometry.kv_heads, len(prompt)):
                at = geometry.offset_bytes(layer, head, slot, sequence)
                owned[at : at + geometry.slot_bytes] = True
        device.write(buffer, np.where(owned, held, np.uint8(poison)))
    steps = engine.decode({sequence: 50 + sequence for sequence in PROMPTS})
    for sequence, step in steps.items():
        np.testing.assert_array_equal(step.logits_V, alone[sequence][-1])


def test_a_fork_shares_its_prefix_until_it_writes(engine, device, alone):
    engine.prefill(PROMPTS[1])
    child = engine.fork_sequence(0, len(PROMPTS[1]))
    assert engine.pool.pages_of(child) == engine.pool.pages_of(0)
    other = engine.step(3, sequence=child)
    assert engine.pool.pages_of(child)[0] == engine.pool.pages_of(0)[0]
    assert engine.pool.pages_of(child)[1] != engine.pool.pages_of(0)[1]
    step = engine.step(51)
    np.testing.assert_array_equal(step.logits_V, alone[1][-1])
    assert (other.logits_V != step.logits_V).any()
    engine.close_sequence(child)
    np.testing.assert_array_equal(engine.pool.references_P, engine.pool.multiplicity())


def test_the_freed_pages_of_a_closed_sequence_hold_nan_and_those_of_others_what_they_held(
    engine, device
):
    fill(engine)
    geometry, freed = engine.kv_geometry(), engine.pool.pages_of(1)
    before = contents(engine, device)
    engine.close_sequence(1)
    for old, new in zip(before, contents(engine, device), strict=True):
        shape = geometry.layers, -1, geometry.page_stride_bytes
        old, new = old.reshape(shape), new.reshape(shape)
        kept = np.setdiff1d(np.arange(old.shape[1]), freed)
        np.testing.assert_array_equal(new[:, kept], old[:, kept])
        assert np.isnan(new[:, list(freed)].view(np.float16)).all()


REFUSED = {
    "pool_exhausted": (
        lambda e: e.prefill([1] * 60, sequence=2),
        OutOfPages,
        "3 pages needed, 2 of",
    ),
    "closed_sequence": (lambda e: e.step(1, sequence=3), UnknownSequence, "no sequence 3"),
    "batch_with_one_unknown": (lambda e: e.decode({0: 1, 3: 1}), UnknownSequence, "3"),
    "too_many_sequences": (
        lambda e: [e.open_sequence() for _ in range(9)],
        OutOfPages,
        "all 4 sequences",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_changes_no_byte(engine, device, case):
    call, error, message = REFUSED[case]
    fill(engine)
    engine.prefill([1] * 40)
    before = contents(engine, device)
    lengths = [engine.pool.length(sequence) for sequence in PROMPTS]
    with pytest.raises(error, match=message):
        call(engine)
    assert lengths == [engine.pool.length(sequence) for sequence in PROMPTS]
    for old, new in zip(before, contents(engine, device), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("dtype", KV_TYPES)
def test_every_cache_type_runs_and_its_tap_is_what_attention_saw(quantised_path, device, dtype):
    scale = 0.25 if KV_TYPES[dtype].scaled else 1.0
    engine = Engine.open(
        quantised_path, device, kv_dtype=dtype, kv_scale=scale, max_context=64, page_slots=16
    )
    step = engine.prefill(PROMPTS[1], Taps.of(["attn.k_rope", "attn.v", "kv.k", "kv.v"]))[-1]
    for kind, new in (("kv.k", "attn.k_rope"), ("kv.v", "attn.v")):
        held, exact = step.taps[1, kind][-1], step.taps[1, new][0]
        roundoff = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 2.0**-4)
        smallest = scale * 2.0**-11 if scale != 1 else 2.0**-25
        assert (np.abs(held - exact) <= roundoff * np.abs(exact) + smallest).all()
        assert (held != exact).any() == (dtype != "float32")
    engine.close()


OPTIONS = {
    "page_size": ({"page_slots": 17}, "page_slots is 17: use None or"),
    "pages_without_page_size": ({"pages": 4}, "pages is 4: use None without"),
    "sequences": ({"sequences": 65}, "sequences is 65: use 1 to 64"),
    "rows": ({"sequences": 8, "max_rows": 4}, "max_rows is 4: use at least"),
    "scale": ({"kv_scale": 0.0}, "kv_scale is 0.0: use positive"),
    "window": ({"window": -1}, "window is -1"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_out_of_range_are_refused_by_name(quantised_path, device, case):
    options, message = OPTIONS[case]
    with pytest.raises(EngineError, match=message):
        Engine.open(quantised_path, device, **options)
