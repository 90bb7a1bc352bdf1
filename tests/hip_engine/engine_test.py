"""The whole engine on the shipped model: every site against its own operation in fp64."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from hip_engine.engine import Engine
from hip_engine.errors import (
    ContextOverflow,
    EngineError,
    OutOfDeviceMemory,
    RouteNotBuilt,
    TokenRefused,
    UnknownSite,
    WeightsDisagree,
)
from hip_engine.memory_plan import rope_table
from hip_engine.routes import BUILT
from hip_engine.spot_check import check_weights_on_device
from hip_engine.taps import NO_LAYER, Taps
from hip_engine.weights import open_model
from tests.hip_engine import reference
from tests.tiny_gguf import Shape, write_llama

MODEL = Path(__file__).parents[2] / "models" / "greta-tiny-32l" / "greta-tiny-32l-Q4_K_M.gguf"
TOKENS = (1, 700, 3000, 42, 4095, 9, 700)
LAYERS = (0, 1, 31)
CONTEXT = 300


ROUTES = tuple(map(str, BUILT))


@pytest.fixture(scope="module")
def tensors():
    return open_model(MODEL).tensors


@pytest.fixture(scope="module", params=ROUTES)
def engine(request, device):
    opened = Engine.open(MODEL, device, max_context=CONTEXT, route=request.param)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def manual(device):
    opened = Engine.open(MODEL, device, max_context=CONTEXT)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def run(engine):
    """Every token by `step` without taps, and the last one again with all of them."""
    engine.reset()
    plain = [engine.step(token) for token in TOKENS]
    engine.reset()
    engine.prefill(TOKENS[:-1])
    return plain, engine.step(TOKENS[-1], Taps.of(engine.sites, LAYERS))


def turned(x_TNH):
    """RoPE at the last token's position, rounded to fp32 as the kernels round it."""
    ref, _ = reference.rope(x_TNH, *turn())
    return ref.astype(np.float32)


def turn():
    table = rope_table(open_model(MODEL).config, CONTEXT)[len(TOKENS) - 1][None]
    return table[..., 0], table[..., 1]


def predictions(engine, tensors, taps, layer):
    """site -> (fp64 result, bound) from the captured inputs of that site's operation."""
    config, block = engine.config, f"blk.{layer}"

    def tap(site):
        return taps[layer, site]

    def gemv(x, name):
        w = weight(tensors, f"{block}.{name}.weight")
        return reference.gemv(w, tap(x).reshape(-1))

    def norm(x_TD, name):
        w = weight(tensors, f"{block}.{name}.weight")
        return reference.rms_norm(x_TD, w, config.norm_eps)

    def exactly(x):
        return x.astype(np.float64), np.zeros(x.shape)

    q_NH = taps.get((layer, "attn.q_rope"), turned(tap("attn.q")))[0]
    operands = engine.precision["attn.out"].get("operand")
    sites = {
        "attn.q": gemv("attn.norm", "attn_q"),
        "attn.k": gemv("attn.norm", "attn_k"),
        "attn.v": gemv("attn.norm", "attn_v"),
        "attn.q_rope": reference.rope(tap("attn.q"), *turn()),
        "attn.k_rope": reference.rope(tap("attn.k"), *turn()),
        "attn.out": reference.attention(q_NH, tap("kv.k"), tap("kv.v"), operands=operands),
        "attn.proj": gemv("attn.out", "attn_output"),
        "ffn.norm": norm(tap("resid.mid"), "ffn_norm"),
        "ffn.gate": gemv("ffn.norm", "ffn_gate"),
        "ffn.up": gemv("ffn.norm", "ffn_up"),
        "ffn.act": reference.swiglu(tap("ffn.gate"), tap("ffn.up")),
        "ffn.down": gemv("ffn.act", "ffn_down"),
        "resid.out": exactly(tap("resid.mid") + tap("ffn.down")),
    }
    if layer == 0:
        x = taps[NO_LAYER, "embed"]
        sites["attn.norm"] = norm(x, "attn_norm")
        sites["resid.mid"] = exactly(x + tap("attn.proj"))
    return {site: value for site, value in sites.items() if site in engine.sites}


def weight(tensors, name):
    return gguf.dequantize(tensors[name].data, tensors[name].type).astype(np.float32)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_site_is_its_operation_on_the_sites_before_it(engine, tensors, run, layer):
    taps = run[1].taps
    for site, (ref, bound) in predictions(engine, tensors, taps, layer).items():
        got = taps[layer, site]
        reference.assert_within(ref.reshape(got.shape), got, bound.reshape(got.shape))


def test_the_ends_of_the_model_are_their_operations(engine, tensors, run):
    taps = run[1].taps
    np.testing.assert_array_equal(
        taps[NO_LAYER, "embed"][0], weight(tensors, "token_embd.weight")[TOKENS[-1]]
    )
    norm = weight(tensors, "output_norm.weight")
    ref, bound = reference.rms_norm(taps[31, "resid.out"], norm, engine.config.norm_eps)
    reference.assert_within(ref, taps[NO_LAYER, "final.norm"], bound)
    x_D = taps[NO_LAYER, "final.norm"][0]
    ref, bound = reference.gemv(weight(tensors, "output.weight"), x_D)
    reference.assert_within(ref, taps[NO_LAYER, "logits"][0], bound)


def test_the_cache_holds_this_token_as_it_was_computed_rounded_to_fp16(run):
    taps = run[1].taps
    for layer in LAYERS:
        k = taps.get((layer, "attn.k_rope"), turned(taps[layer, "attn.k"]))
        for kind, new in (("kv.k", k), ("kv.v", taps[layer, "attn.v"])):
            assert taps[layer, kind].shape[0] == len(TOKENS)
            rounded = new[0].astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(taps[layer, kind][-1], rounded)


def test_the_cached_k_is_the_bits_of_a_recomputed_rope(engine):
    """Every slot of every layer, from the k before the rotation, by the kernel's own arithmetic."""
    engine.reset()
    steps = [engine.step(token, Taps.of(["attn.k", "kv.k"])) for token in TOKENS]
    table = rope_table(engine.config, CONTEXT)
    for layer in range(engine.config.L):
        slab_SKH = steps[-1].taps[layer, "kv.k"]
        for position, step in enumerate(steps):
            k_KH = step.taps[layer, "attn.k"][0]
            cosine, sine = table[position, :, 0], table[position, :, 1]
            a, b = k_KH[:, 0::2], k_KH[:, 1::2]
            ref = np.empty_like(k_KH)
            ref[:, 0::2], ref[:, 1::2] = fma(a, cosine, -(b * sine)), fma(a, sine, b * cosine)
            rounded = ref.astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(slab_SKH[position], rounded)


def fma(a, b, c):
    """fp32; the product is exact in fp64."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def test_manual_and_fused_have_the_same_bits(run, engine, device):
    other = "manual" if engine.route.kernel == "fused" else "fused"
    twin = Engine.open(MODEL, device, max_context=CONTEXT, route=f"{other}/{engine.route.matmul}")
    for step in run[0]:
        ref = twin.step(TOKENS[step.position])
        np.testing.assert_array_equal(ref.logits_V, step.logits_V)
    twin.close()


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_prefill_in_any_chunks_has_the_bits_of_decode(run, engine, chunk):
    engine.reset()
    for first in range(0, len(TOKENS), chunk):
        last = engine.prefill(TOKENS[first : first + chunk])[-1]
    np.testing.assert_array_equal(last.logits_V, run[0][-1].logits_V)
    engine.reset()
    steps = engine.prefill(TOKENS, Taps.of(["kv.k", "attn.out"], [31]))
    for got, ref in zip(steps, run[0], strict=True):
        np.testing.assert_array_equal(got.logits_V, ref.logits_V)
        assert got.top1 == ref.top1
        assert got.taps[31, "kv.k"].shape[0] == got.position + 1


def pool_bytes(engine, device):
    geometry = engine.kv_geometry()
    return [device.read(b, np.dtype(np.uint8), b.nbytes) for b in (geometry.k, geometry.v)]


def test_taps_do_not_change_the_result(run, engine, device):
    """`run` stepped without taps, by a graph; here every site of every layer is read."""
    engine.reset()
    for ref, token in zip(run[0], TOKENS, strict=True):
        tapped = engine.step(token, Taps.of(engine.sites))
        np.testing.assert_array_equal(ref.logits_V, tapped.logits_V)
        assert ref.top1 == tapped.top1 and not ref.taps
    held = pool_bytes(engine, device)
    engine.reset()
    for token in TOKENS:
        engine.step(token)
    for ref, got in zip(held, pool_bytes(engine, device), strict=True):
        np.testing.assert_array_equal(ref, got)


def test_top1_is_the_argmax_of_the_logits(run):
    for step in run[0]:
        assert step.top1 == int(np.argmax(step.logits_V))


def test_taps_return_what_was_asked_for_and_nothing_else(engine):
    engine.reset()
    step = engine.step(5, Taps.of(["kv.v", "logits", "attn.q"], [7]))
    assert set(step.taps) == {(7, "kv.v"), (7, "attn.q"), (NO_LAYER, "logits")}


def test_the_route_is_attested_from_what_executed(engine, run):
    engine.reset()
    engine.prefill(TOKENS[:-1])
    engine.step(TOKENS[-1])
    attestation = engine.attest()
    assert attestation.observed == str(engine.route)
    assert (attestation.attention_mfma > 0) == (engine.route.matmul == "mfma")
    assert attestation.code_object_sha256 == (engine.code_object_sha256,)
    assert attestation.accesses_seen == "none"
    prefill = engine.attest("prefill")
    assert prefill.observed == f"manual/{engine.route.matmul}"
    assert prefill.symbols["argmax"] == 1  # all rows in one pass
    assert len(run[1].launches) < 14 * engine.config.L


def test_a_step_writes_its_slots_and_reads_only_live_ones(engine, device):
    engine.reset()
    engine.prefill(TOKENS[:3])
    with device.watch() as log:
        engine.step(TOKENS[3])
    geometry = engine.kv_geometry()
    for buffer in (geometry.k, geometry.v):
        np.testing.assert_array_equal(log.written(buffer), slots(engine, [3]))
        np.testing.assert_array_equal(log.read(buffer), slots(engine, range(4)))


def test_attention_handed_the_slab_of_layer_0_shows_at_layer_1_and_not_before(engine, tensors, run):
    engine.reset()
    engine.kv_layer_offset_bytes = lambda layer: 0
    try:
        for token in TOKENS[:-1]:
            engine.step(token)
        faulty = engine.step(TOKENS[-1], Taps.of(engine.sites, LAYERS)).taps
    finally:
        del engine.kv_layer_offset_bytes
    np.testing.assert_array_equal(faulty[0, "attn.out"], run[1].taps[0, "attn.out"])
    assert (faulty[1, "attn.out"] != run[1].taps[1, "attn.out"]).all()
    ref, bound = predictions(engine, tensors, faulty, 1)["attn.out"]
    assert (np.abs(faulty[1, "attn.out"][0] - ref) > 10 * bound).any()


def slots(engine, positions):
    """One bool for each byte of the pool: it is part of a slot at one of `positions`."""
    geometry = engine.kv_geometry()
    inside = np.zeros(geometry.k.nbytes, bool)
    for layer, head in np.ndindex(geometry.layers, geometry.kv_heads):
        for position in positions:
            at = geometry.offset_bytes(layer, head, position)
            inside[at : at + geometry.slot_bytes] = True
    return inside


def test_every_replay_of_the_graph_reads_and_writes_at_its_own_position(engine, device):
    engine.reset()
    for position, token in enumerate(TOKENS):
        with device.watch() as log:
            step = engine.step(token)
        assert step.launches[-1].symbol == "advance"  # of the graph: a tapped step has none
        assert engine.attest().observed == str(engine.route)
        assert engine.attest().accesses_seen == "all"
        geometry = engine.kv_geometry()
        for buffer in (geometry.k, geometry.v):
            np.testing.assert_array_equal(log.read(buffer), slots(engine, range(position + 1)))
            np.testing.assert_array_equal(log.written(buffer), slots(engine, [position]))


@pytest.mark.slow
def test_a_generation_that_outgrows_its_graph_goes_on_with_a_wider_one(manual):
    prompt = np.random.default_rng(0).integers(1, 4096, 253).tolist()
    manual.reset()
    first = manual.prefill(prompt)[-1].top1
    generated = manual.generate(first, 8)
    manual.reset()
    steps = manual.prefill([*prompt, first, *generated.tokens])
    assert [step.top1 for step in steps[len(prompt) : -1]] == list(generated.tokens)


def test_a_generation_ends_with_a_token_it_was_told_to_end_with(manual):
    manual.reset()
    whole = manual.generate(TOKENS[0], 6)
    manual.reset()
    end = whole.tokens[2]
    cut = manual.generate(TOKENS[0], 6, until=[end])
    assert cut.tokens == whole.tokens[: whole.tokens.index(end) + 1]
    assert manual.position == len(cut.tokens)
    # The pass that was under way then has left no trace.
    following = manual.step(end)
    manual.reset()
    steps = manual.prefill([TOKENS[0], *cut.tokens])
    np.testing.assert_array_equal(following.logits_V, steps[-1].logits_V)


def test_replayed_decode_chooses_the_tokens_of_steps(engine, device):
    prompt, count = list(TOKENS), 6
    engine.reset()
    tokens = [engine.prefill(prompt)[-1].top1]
    while len(tokens) <= count:
        tokens.append(engine.step(tokens[-1]).top1)
    engine.reset()
    engine.prefill(prompt)
    with device.watch() as log:
        generated = engine.generate(tokens[0], count)
    assert list(generated.tokens) == tokens[1:]
    assert engine.position == len(prompt) + count
    assert engine.attest().observed == str(engine.route)
    decoded = sum(engine.attest().symbols.values())
    assert generated.launches_per_token == decoded // count
    geometry = engine.kv_geometry()
    written = slots(engine, range(len(prompt), len(prompt) + count))
    np.testing.assert_array_equal(log.written(geometry.k), written)
    np.testing.assert_array_equal(log.written(geometry.v), written)
    following = engine.step(generated.tokens[-1])
    engine.reset()
    engine.prefill(prompt)
    for token in tokens:
        last = engine.step(token)
    np.testing.assert_array_equal(following.logits_V, last.logits_V)


def test_prefill_on_matrix_cores_is_within_the_bounds_it_declares(device, tensors):
    engine = Engine.open(MODEL, device, max_context=CONTEXT, prefill_gemm="mfma")
    sites = ["attn.norm", "attn.q", "attn.v", "ffn.norm", "ffn.up"]
    steps = engine.prefill(TOKENS, Taps.of(sites, [0, 31]))
    assert engine.attest().observed == "none/none"
    prefill = engine.attest("prefill")
    assert prefill.observed == "manual/valu"
    executed = {op.symbol for op in prefill.ops if op.executed.get("mfma")}
    assert executed == {"gemm_mfma_q4_k", "gemm_mfma_q6_k"}
    for site, x, name in (("attn.q", "attn.norm", "attn_q"), ("ffn.up", "ffn.norm", "ffn_up")):
        operand = engine.prefill_precision[site]["operand"]
        for layer in (0, 31):
            w = weight(tensors, f"blk.{layer}.{name}.weight")
            for step in steps:
                ref, bound = reference.gemv(w, step.taps[layer, x][0], operand)
                reference.assert_within(ref, step.taps[layer, site].reshape(-1), bound)
    engine.close()


REFUSED = {
    "beyond_the_vocabulary": (lambda e: e.step(4096), TokenRefused, "token 4096.*0..4095"),
    "negative": (lambda e: e.step(-1), TokenRefused, "token -1"),
    "late_in_a_prompt": (lambda e: e.prefill([1, 2, 5000]), TokenRefused, "token 5000"),
    "too_long": (lambda e: e.prefill([1] * CONTEXT), ContextOverflow, "300 tokens at position 1"),
    "nothing_to_generate": (lambda e: e.generate(1, 0), TokenRefused, "0 tokens to generate"),
    "generation_too_long": (lambda e: e.generate(1, CONTEXT), ContextOverflow, "at position 1"),
    "no_such_site": (lambda e: e.step(1, Taps.of(["attn.probs"])), UnknownSite, "attn.probs"),
    "no_such_layer": (lambda e: e.step(1, Taps.of(["attn.q"], [32])), UnknownSite, "0..31"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_call_changes_nothing(manual, device, case):
    call, error, message = REFUSED[case]
    manual.reset()
    manual.step(1)
    geometry = manual.kv_geometry()
    before = device.read(geometry.k, np.dtype(np.uint8), geometry.k.nbytes)
    with device.watch() as log, pytest.raises(error, match=message):
        call(manual)
    assert manual.position == 1
    assert not log.written(geometry.k).any()
    after = device.read(geometry.k, np.dtype(np.uint8), geometry.k.nbytes)
    np.testing.assert_array_equal(before, after)


OPENINGS = {
    "head_size_not_built": ({}, RouteNotBuilt, "head size 10: nearest are 64 and 80"),
    "unknown_dtype": ({"kv_dtype": "int4"}, EngineError, "'int4': use float32 or float16"),
    "context_too_long": ({"max_context": 129}, ContextOverflow, "1 to 128"),
    "no_context": ({"max_context": 0}, ContextOverflow, "1 to 128"),
}


@pytest.mark.parametrize("case", OPENINGS)
def test_what_cannot_be_opened_is_refused(tiny_path, device, case):
    arguments, error, message = OPENINGS[case]
    with pytest.raises(error, match=message):
        Engine.open(tiny_path, device, **arguments)


def test_columns_that_matrix_cores_do_not_take_are_refused_before_a_launch(device, tmp_path):
    path = write_llama(tmp_path / "odd.gguf", Shape(1, 72, 2, 1, 64, 96, 97))
    Engine.open(path, device).close()
    with pytest.raises(RouteNotBuilt, match="has 72: nearest is prefill_gemm valu"):
        Engine.open(path, device, prefill_gemm="mfma")


def test_a_wrong_decoder_is_caught_by_the_check_of_weights(quantised_path, device):
    swapped = ("weight_formats.h", "return LowStart(unit) + 64;", "return LowStart(unit) + 32;")
    with pytest.raises(WeightsDisagree, match="Q6_K.*row 0 column"):
        Engine.open(quantised_path, device, source_patch=[swapped])


def test_a_norm_that_is_not_the_files_is_caught_by_the_check_of_weights(quantised_path, device):
    engine = Engine.open(quantised_path, device)
    model = open_model(quantised_path)
    norm = engine._buffers["blk.1.ffn_norm.weight"]
    device.write(norm, np.array([2.5], np.float32), offset_bytes=40)
    with pytest.raises(WeightsDisagree, match="blk.1.ffn_norm.weight .F32. row 0 column 10"):
        check_weights_on_device(engine._launcher, model, engine._buffers)
    engine.close()


def test_a_model_of_mixed_formats_and_fp32_cache_runs(quantised_path, device):
    engine = Engine.open(quantised_path, device, kv_dtype="float32")
    step = engine.prefill([5, 6, 7], Taps.of(["attn.q_rope", "kv.k", "kv.v", "attn.out"]))[-1]
    assert engine.precision["kv.k"]["store"] == "float32"
    for layer in range(engine.config.L):
        q, k, v, out = (step.taps[layer, s] for s in ("attn.q_rope", "kv.k", "kv.v", "attn.out"))
        ref, bound = reference.attention(q[0], k, v)
        reference.assert_within(ref, out[0], bound)
    engine.close()


class SmallDevice:
    """Another device with room for a few buffers."""

    def __init__(self, device, room):
        self.device, self.room, self.live = device, room, {}

    def __getattr__(self, name):
        return getattr(self.device, name)

    def allocate(self, nbytes, label):
        if len(self.live) == self.room:
            raise OutOfDeviceMemory(label)
        buffer = self.device.allocate(nbytes, label)
        self.live[buffer.address] = buffer
        return buffer

    def free(self, buffer):
        del self.live[buffer.address]
        self.device.free(buffer)


def test_a_model_that_does_not_fit_leaves_nothing_behind(quantised_path, device):
    small = SmallDevice(device, 9)
    with pytest.raises(OutOfDeviceMemory, match=r"the model needs \d+ bytes"):
        Engine.open(quantised_path, small)
    assert not small.live


def test_everything_on_the_device_is_allocated_when_the_engine_opens(quantised_path, device):
    opening = SmallDevice(device, 10**6)
    engine = Engine.open(quantised_path, opening, sequences=2, page_slots=16, max_context=64)
    opening.room = len(opening.live)
    engine.prefill([5, 6, 7])
    engine.step(8)
    engine.generate(9, 20)
    child = engine.fork_sequence(0, 20)
    engine.decode({0: 1, child: 2})
    engine.close_sequence(child)
    with pytest.raises(OutOfDeviceMemory):
        opening.allocate(1, "one more")
    engine.close()
    assert not opening.live


def test_layers_beyond_two_to_the_31_elements_have_the_bits_of_near_ones(quantised_path, device):
    """Writes, copies, reads and poison of a sparse pool, in the last pages of each layer."""
    results = []
    for pages in (8, (1 << 31) // (2 * 16 * 64) + 8):
        layout = {"sequences": 2, "page_slots": 16, "max_context": 64, "pages": pages}
        engine = Engine.open(quantised_path, device, route="fused/valu", **layout)
        engine.pool._free.reverse()  # pages from the other end of each layer
        engine.prefill(range(5, 25))
        step = engine.decode({engine.fork_sequence(0, 18): 7, 0: 9})
        geometry = engine.kv_geometry()
        end = geometry.offset_bytes(1, 1, 17, 1) // 2
        assert (end > 1 << 32) == (pages > 8)
        engine.close_sequence(1)
        freed = device.read(geometry.k, np.dtype(np.float16), 64, 2 * end)
        assert np.isnan(freed).all()
        results.append([one.logits_V for one in step.values()])
        engine.close()
    np.testing.assert_array_equal(*results)
