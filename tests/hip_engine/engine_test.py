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
from hip_engine.taps import NO_LAYER, SITES, Taps
from tests.hip_engine import reference

MODEL = Path(__file__).parents[2] / "models" / "greta-tiny-32l" / "greta-tiny-32l-Q4_K_M.gguf"
TOKENS = (1, 700, 3000, 42, 4095, 9, 700)
LAYERS = (0, 1, 31)
CONTEXT = 300


@pytest.fixture(scope="module")
def engine(device):
    opened = Engine.open(MODEL, device, max_context=CONTEXT)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def run(engine):
    """Logits and top-1 of every token without taps, and the last step with all of them."""
    engine.reset()
    plain = engine.prefill(TOKENS)
    engine.reset()
    engine.prefill(TOKENS[:-1])
    return plain, engine.step(TOKENS[-1], Taps.of(SITES, LAYERS))


def weight(engine, name):
    tensor = engine._model.tensors[name]
    return gguf.dequantize(tensor.data, tensor.type).astype(np.float32)


def predictions(engine, taps, layer):
    """site -> (fp64 result, bound) from the captured inputs of that site's operation."""
    config, block = engine.config, f"blk.{layer}"

    def tap(site):
        return taps[layer, site]

    def gemv(x, name):
        return reference.gemv(weight(engine, f"{block}.{name}.weight"), tap(x).reshape(-1))

    def norm(x_TD, name):
        return reference.rms_norm(x_TD, weight(engine, f"{block}.{name}.weight"), config.norm_eps)

    def exactly(x):
        return x.astype(np.float64), np.zeros(x.shape)

    turn = rope_table(config, CONTEXT)[len(TOKENS) - 1][None]
    x = taps[NO_LAYER, "embed"] if layer == 0 else None
    sites = {
        "attn.q": gemv("attn.norm", "attn_q"),
        "attn.k": gemv("attn.norm", "attn_k"),
        "attn.v": gemv("attn.norm", "attn_v"),
        "attn.q_rope": reference.rope(tap("attn.q"), turn[..., 0], turn[..., 1]),
        "attn.k_rope": reference.rope(tap("attn.k"), turn[..., 0], turn[..., 1]),
        "attn.out": reference.attention(tap("attn.q_rope")[0], tap("kv.k"), tap("kv.v")),
        "attn.proj": gemv("attn.out", "attn_output"),
        "ffn.norm": norm(tap("resid.mid"), "ffn_norm"),
        "ffn.gate": gemv("ffn.norm", "ffn_gate"),
        "ffn.up": gemv("ffn.norm", "ffn_up"),
        "ffn.act": reference.swiglu(tap("ffn.gate"), tap("ffn.up")),
        "ffn.down": gemv("ffn.act", "ffn_down"),
        "resid.out": exactly(tap("resid.mid") + tap("ffn.down")),
    }
    if x is not None:
        sites["attn.norm"] = norm(x, "attn_norm")
        sites["resid.mid"] = exactly(x + tap("attn.proj"))
    return sites


@pytest.mark.parametrize("layer", LAYERS)
def test_every_site_is_its_operation_on_the_sites_before_it(engine, run, layer):
    taps = run[1].taps
    for site, (ref, bound) in predictions(engine, taps, layer).items():
        got = taps[layer, site]
        reference.assert_within(ref.reshape(got.shape), got, bound.reshape(got.shape))


def test_the_ends_of_the_model_are_their_operations(engine, run):
    taps = run[1].taps
    np.testing.assert_array_equal(
        taps[NO_LAYER, "embed"][0], weight(engine, "token_embd.weight")[TOKENS[-1]]
    )
    norm = weight(engine, "output_norm.weight")
    ref, bound = reference.rms_norm(taps[31, "resid.out"], norm, engine.config.norm_eps)
    reference.assert_within(ref, taps[NO_LAYER, "final.norm"], bound)
    x_D = taps[NO_LAYER, "final.norm"][0]
    ref, bound = reference.gemv(weight(engine, "output.weight"), x_D)
    reference.assert_within(ref, taps[NO_LAYER, "logits"][0], bound)


def test_the_cache_holds_this_token_as_it_was_computed_rounded_to_fp16(run):
    taps = run[1].taps
    for kind, source in (("kv.k", "attn.k_rope"), ("kv.v", "attn.v")):
        for layer in LAYERS:
            assert taps[layer, kind].shape[0] == len(TOKENS)
            rounded = taps[layer, source][0].astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(taps[layer, kind][-1], rounded)


def test_taps_do_not_change_the_result(run):
    plain, tapped = run
    np.testing.assert_array_equal(plain[-1].logits_V, tapped.logits_V)
    assert not plain[-1].taps


def test_top1_is_the_argmax_of_the_logits(run):
    for step in run[0]:
        assert step.top1 == int(np.argmax(step.logits_V))


def test_taps_return_what_was_asked_for_and_nothing_else(engine):
    engine.reset()
    step = engine.step(5, Taps.of(["kv.v", "logits", "attn.q"], [7]))
    assert set(step.taps) == {(7, "kv.v"), (7, "attn.q"), (NO_LAYER, "logits")}


def test_the_route_is_attested_from_what_executed(engine, run):
    attestation = engine.attest()
    assert attestation.observed == str(engine.route) == "manual/valu"
    assert attestation.attention_mfma == 0
    assert attestation.code_object_sha256 == (engine.code_object_sha256,)
    assert len(run[1].launches) < 14 * engine.config.L


def test_a_step_writes_its_slots_and_reads_only_live_ones(engine, device):
    engine.reset()
    engine.prefill(TOKENS[:3])
    with device.watch() as log:
        engine.step(TOKENS[3])
    geometry = engine.kv_geometry()
    for buffer in (geometry.k, geometry.v):
        written, live = np.zeros((2, buffer.nbytes), bool)
        for layer in range(geometry.layers):
            for head in range(geometry.kv_heads):
                first, last = (geometry.offset_bytes(layer, head, s) for s in (0, 3))
                live[first : last + geometry.slot_bytes] = True
                written[last : last + geometry.slot_bytes] = True
        np.testing.assert_array_equal(log.written(buffer), written)
        np.testing.assert_array_equal(log.read(buffer), live)


def test_attention_handed_the_slab_of_layer_0_shows_at_layer_1_and_not_before(engine, run):
    engine.reset()
    engine.kv_layer_offset_bytes = lambda layer: 0
    try:
        engine.prefill(TOKENS[:-1])
        faulty = engine.step(TOKENS[-1], Taps.of(SITES, LAYERS)).taps
    finally:
        del engine.kv_layer_offset_bytes
    np.testing.assert_array_equal(faulty[0, "attn.out"], run[1].taps[0, "attn.out"])
    assert (faulty[1, "attn.out"] != run[1].taps[1, "attn.out"]).all()
    ref, bound = predictions(engine, faulty, 1)["attn.out"]
    assert (np.abs(faulty[1, "attn.out"][0] - ref) > 1000 * bound).any()


REFUSED = {
    "beyond_the_vocabulary": (lambda e: e.step(4096), TokenRefused, "token 4096.*0..4095"),
    "negative": (lambda e: e.step(-1), TokenRefused, "token -1"),
    "late_in_a_prompt": (lambda e: e.prefill([1, 2, 5000]), TokenRefused, "token 5000"),
    "too_long": (lambda e: e.prefill([1] * CONTEXT), ContextOverflow, "300 tokens at position 1"),
    "no_such_site": (lambda e: e.step(1, Taps.of(["attn.probs"])), UnknownSite, "attn.probs"),
    "no_such_layer": (lambda e: e.step(1, Taps.of(["attn.q"], [32])), UnknownSite, "0..31"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_call_changes_nothing(engine, device, case):
    call, error, message = REFUSED[case]
    engine.reset()
    engine.step(1)
    geometry = engine.kv_geometry()
    before = device.read(geometry.k, np.dtype(np.uint8), geometry.k.nbytes)
    with device.watch() as log, pytest.raises(error, match=message):
        call(engine)
    assert engine.position == 1
    assert not log.written(geometry.k).any()
    after = device.read(geometry.k, np.dtype(np.uint8), geometry.k.nbytes)
    np.testing.assert_array_equal(before, after)


OPENINGS = {
    "head_size_not_built": ({}, RouteNotBuilt, "head size 10.*f16.*attn_manual_valu"),
    "unknown_dtype": ({"kv_dtype": "int4"}, EngineError, "'int4': use float16 or float32"),
    "context_too_long": ({"max_context": 129}, ContextOverflow, "1 to 128"),
    "no_context": ({"max_context": 0}, ContextOverflow, "1 to 128"),
}


@pytest.mark.parametrize("case", OPENINGS)
def test_what_cannot_be_opened_is_refused(tiny_path, device, case):
    arguments, error, message = OPENINGS[case]
    with pytest.raises(error, match=message):
        Engine.open(tiny_path, device, **arguments)


def test_a_wrong_decoder_is_caught_by_the_check_of_weights(quantised_path, device):
    swapped = ("weight_formats.h", "return LowStart(unit) + 64;", "return LowStart(unit) + 32;")
    with pytest.raises(WeightsDisagree, match="Q6_K.*row 0 column"):
        Engine.open(quantised_path, device, source_patch=[swapped])


def test_a_model_of_mixed_formats_and_fp32_cache_runs(quantised_path, device):
    engine = Engine.open(quantised_path, device, kv_dtype="float32")
    step = engine.prefill([5, 6, 7], Taps.of(["attn.q_rope", "kv.k", "kv.v", "attn.out"]))[-1]
    assert engine.precision["kv.k"] == {"store": "float32", "accumulate": "float32"}
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
