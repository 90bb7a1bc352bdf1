"""Several sequences, pages and sharing, on a small random model."""

import hashlib

import numpy as np
import pytest

from hip_engine.engine import Engine
from hip_engine.errors import (
    EngineError,
    ForeignSequence,
    OutOfPages,
    UnknownSequence,
    WrongBlockTable,
)
from hip_engine.kv_types import KV_TYPES
from hip_engine.routes import BUILT
from hip_engine.taps import Taps
from tests.tiny_gguf import Shape, write_llama

PAGED = {"sequences": 4, "page_slots": 16, "max_context": 64, "pages": 8}
PROMPTS = {0: [5, 6, 7], 1: list(range(20, 41)), 2: [99]}


# Bytes of one element that nobody may notice: NaN, infinity (none in fp8), the largest number.
POISONS = {
    "float32": {"nan": 0x7FC00000, "inf": 0xFF800000, "large": 0x7F7FFFFF},
    "float16": {"nan": 0x7FFF, "inf": 0xFC00, "large": 0x7BFF},
    "bfloat16": {"nan": 0x7FFF, "inf": 0xFF80, "large": 0x7F7F},
    "float8_e4m3fnuz": {"nan": 0x80, "large": 0x7F},
}
QUICK = {("manual/valu", "float16"), ("fused/mfma", "float16")}
LAWS = [
    pytest.param((str(route), kind), marks=[pytest.mark.slow] * ((str(route), kind) not in QUICK))
    for kind in KV_TYPES
    for route in BUILT
    if route.matmul == "valu" or KV_TYPES[kind].operands
]


@pytest.fixture(scope="module", params=LAWS, ids=lambda law: "-".join(law))
def law(request):
    """Route and cache type."""
    return request.param


@pytest.fixture(scope="module")
def options(law):
    route, kind = law
    return {"route": route, "kv_dtype": kind, "kv_scale": 0.25 if "float8" in kind else 1.0}


@pytest.fixture(scope="module")
def alone(quantised_path, device, options):
    """What a contiguous cache with one sequence gives for every prompt and one more token."""
    engine = Engine.open(quantised_path, device, max_context=64, **options)
    results = {}
    for sequence, prompt in PROMPTS.items():
        engine.reset()
        steps = [*engine.prefill(prompt), engine.step(50 + sequence)]
        results[sequence] = [step.logits_V for step in steps]
    engine.close()
    return results


@pytest.fixture
def engine(quantised_path, device, options):
    opened = Engine.open(quantised_path, device, **options, **PAGED)
    yield opened
    opened.close()


def fill(engine):
    """Opens and prefills every prompt's sequence, on pages that lie in no order."""
    assert engine.open_sequence() == 1
    engine.pool.reserve({0: 16, 1: 32})
    engine.close_sequence(0)
    engine.close_sequence(1)
    assert engine.open_sequence() == 0
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


@pytest.mark.parametrize("poison", ["nan", "inf", "large"])
def test_bytes_that_no_sequence_owns_do_not_matter(engine, device, alone, law, poison):
    kind = KV_TYPES[law[1]]
    if poison not in POISONS[kind.name]:
        return  # E4M3 FNUZ has no infinity
    fill(engine)
    geometry = engine.kv_geometry()
    element = np.array([POISONS[kind.name][poison]], f"u{kind.raw.itemsize}").view(np.uint8)
    for buffer, held in zip((geometry.k, geometry.v), contents(engine, device), strict=True):
        owned = np.zeros(buffer.nbytes, bool)
        for sequence, prompt in PROMPTS.items():
            for layer, head, slot in np.ndindex(geometry.layers, geometry.kv_heads, len(prompt)):
                at = geometry.offset_bytes(layer, head, slot, sequence)
                owned[at : at + geometry.slot_bytes] = True
        device.write(buffer, np.where(owned, held, np.resize(element, buffer.nbytes)))
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
    engine, device, law
):
    fill(engine)
    kind = KV_TYPES[law[1]]
    geometry, freed = engine.kv_geometry(), engine.pool.pages_of(1)
    before = contents(engine, device)
    engine.close_sequence(1)
    for old, new in zip(before, contents(engine, device), strict=True):
        shape = geometry.layers, -1, geometry.page_stride_bytes
        old, new = old.reshape(shape), new.reshape(shape)
        kept = np.setdiff1d(np.arange(old.shape[1]), freed)
        np.testing.assert_array_equal(new[:, kept], old[:, kept])
        assert np.isnan(kind.widen(new[:, list(freed)].view(kind.raw))).all()


def test_slots_of_different_sequences_never_overlap(engine):
    fill(engine)
    geometry, seen = engine.kv_geometry(), set()
    assert list(engine.pool.pages_of(1)) != sorted(engine.pool.pages_of(1))
    for sequence, prompt in PROMPTS.items():
        for place in np.ndindex(geometry.layers, geometry.kv_heads, len(prompt)):
            at = geometry.offset_bytes(*place, sequence)
            assert at % geometry.slot_bytes == 0 and at not in seen
            seen.add(at)


def test_the_guard_page_of_every_layer_keeps_its_bytes_through_a_sequence_of_everything(
    engine, device, law
):
    geometry, kind = engine.kv_geometry(), KV_TYPES[law[1]]

    def guards():
        size = geometry.page_stride_bytes
        pools = [pool.reshape(geometry.layers, -1)[:, -size:] for pool in contents(engine, device)]
        return np.stack(pools)

    before = guards()
    assert np.isnan(kind.widen(before.view(kind.raw))).all()
    fill(engine)
    child = engine.fork_sequence(1, 20)
    engine.generate(3, 9, sequence=child)
    engine.decode({0: 1, 1: 2, child: 3})
    engine.close_sequence(1)
    assert hashlib.sha256(guards()).digest() == hashlib.sha256(before).digest()
    assert max(max(engine.pool.pages_of(s)) for s in engine.pool.sequences) < PAGED["pages"]


def test_the_cache_is_as_long_as_the_positions_that_were_computed(engine):
    fill(engine)
    steps = engine.decode({sequence: 50 + sequence for sequence in PROMPTS})
    for sequence, step in steps.items():
        assert engine.pool.length(sequence) == step.position + 1


def damage_a_table(engine):
    engine.pool.tables_BP[1, 1] = engine.pool.pages_of(0)[0]
    engine.decode({0: 1, 1: 1})


def batch_over_the_pool(engine):
    """Two pages are left, and three sequences of the batch need one each."""
    engine.decode({0: 1, 1: 1, 2: 1})


REFUSED = {
    "table_of_a_caller": (damage_a_table, WrongBlockTable, "sequence 1 maps slots from 16 on"),
    "batch_over_the_pool": (batch_over_the_pool, OutOfPages, "3 pages needed, 2 of the pool"),
    "pool_exhausted": (
        lambda e: e.prefill([1] * 48, sequence=2),
        OutOfPages,
        "3 pages needed, 2 of",
    ),
    "closed_sequence": (lambda e: e.step(1, sequence=7), UnknownSequence, "no sequence 7"),
    "batch_with_one_unknown": (lambda e: e.decode({0: 1, 7: 1}), UnknownSequence, "7"),
    "too_many_sequences": (
        lambda e: e.open_sequence(),
        OutOfPages,
        "all 4 sequences",
    ),
}


def digest(engine, device):
    """Of every byte of the pool, and of what the host knows of it."""
    lengths = [(s, engine.pool.length(s), engine.pool.pages_of(s)) for s in engine.pool.sequences]
    return hashlib.sha256(b"".join(map(bytes, contents(engine, device)))).hexdigest(), lengths


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_changes_no_byte(engine, device, case):
    call, error, message = REFUSED[case]
    fill(engine)
    for sequence, length in {0: 48, 1: 32, 2: 16}.items():  # the last slots of their pages
        engine.prefill([1] * (length - engine.pool.length(sequence)), sequence=sequence)
    engine.open_sequence()
    before = digest(engine, device)
    with device.watch() as log, pytest.raises(error, match=message):
        call(engine)
    assert before == digest(engine, device)
    assert not any(log.written(b).any() for b in (engine.kv_geometry().k, engine.kv_geometry().v))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, device):
    """A sequence of an engine of another model, with the number of one of ours."""
    path = tmp_path_factory.mktemp("other") / "model.gguf"
    other = Engine.open(write_llama(path, Shape(1, 128, 2, 1, 64, 96, 97)), device, **PAGED)
    yield other.open_sequence()
    other.close()


MIXED = {
    "step": lambda engine, foreign: engine.step(1, sequence=foreign),
    "prefill": lambda engine, foreign: engine.prefill([1, 2], sequence=foreign),
    "generate": lambda engine, foreign: engine.generate(1, 2, sequence=foreign),
    "batch": lambda engine, foreign: engine.decode({engine.pool.sequences[1]: 1, foreign: 1}),
    "fork": lambda engine, foreign: engine.fork_sequence(foreign, 0),
    "close": lambda engine, foreign: engine.close_sequence(foreign),
}


@pytest.mark.parametrize("case", MIXED)
def test_a_sequence_of_another_model_is_refused_and_changes_no_byte(engine, device, stranger, case):
    fill(engine)
    assert stranger == 1 and stranger != engine.pool.sequences[1]
    before = digest(engine, device)
    with pytest.raises(ForeignSequence, match="1 was opened by an engine of model .* is an en"):
        MIXED[case](engine, stranger)
    assert before == digest(engine, device)


def test_a_sequence_from_before_a_reset_or_of_a_reused_number_is_refused(engine, device):
    old = engine.open_sequence()
    engine.close_sequence(old)
    assert engine.open_sequence() == int(old)
    before = digest(engine, device)
    with pytest.raises(UnknownSequence, match="sequence 1 was closed"):
        engine.step(1, sequence=old)
    assert before == digest(engine, device)
    kept = engine.pool.sequences[0]
    engine.reset()
    with pytest.raises(ForeignSequence, match="before a reset"):
        engine.step(1, sequence=kept)


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
