"""Precision as a study object: each field changes what it names, and nothing before it."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from greta_jax import mfma, ops, reduce
from greta_jax.errors import PrecisionError
from greta_jax.model import Oracle
from greta_jax.precision import Arithmetic, Policy, Rule, stored
from greta_jax.taps import LAYER_SITES, SITES, Taps

FP32 = Policy.fp32()
IDS = np.random.default_rng(6).integers(0, 97, 21).tolist()


@pytest.fixture(scope="module")
def taps_of(tiny_path):
    def run(policy):
        return Oracle.open(tiny_path, policy).prefill(IDS, Taps(SITES)).taps

    return run


@pytest.fixture(scope="module")
def plain(taps_of):
    return taps_of(FP32)


FIRST_CHANGED = {
    "weight": ("bfloat16", "attn.norm"),
    "kv": ("float16", "kv.k"),
    "score": ("bfloat16", "attn.scores"),
    "softmax": ("bfloat16", "attn.probs"),
    "pv": ("bfloat16", "attn.out"),
    "probs": ("float16", "attn.out"),
    "order": ("sequential", "attn.norm"),
    "exp": ("polynomial", "attn.probs"),
}


@pytest.mark.parametrize("field", FIRST_CHANGED)
def test_each_field_first_changes_the_site_it_names(taps_of, plain, field):
    value, first = FIRST_CHANGED[field]
    changed = taps_of(replace(FP32, name="changed", **{field: value}))
    for site in LAYER_SITES[: LAYER_SITES.index(first)]:
        assert np.array_equal(plain[0, site], changed[0, site]), site
    assert not np.array_equal(plain[0, first], changed[0, first].astype(np.float32))
    assert np.abs(plain[-1, "logits"] - changed[-1, "logits"]).max() < 0.2


@pytest.mark.parametrize("kv", ["float16", "bfloat16", "float8_e4m3fnuz", "int8"])
def test_cache_formats_round_by_no_more_than_their_step(taps_of, plain, kv):
    k = plain[0, "attn.k_rope"]
    got = taps_of(replace(FP32, name=kv, kv=kv))[0, "kv.k"].astype(np.float32)
    if kv == "int8":
        step = np.abs(k).max(axis=-1, keepdims=True) / 127
    else:
        info = jnp.finfo(kv)
        step = np.maximum(np.abs(k) * float(info.eps), float(info.smallest_subnormal))
    error = np.abs(got - k)
    computing = 4 * float(np.finfo(np.float32).eps) * np.abs(k)  # scale, quotient, product
    assert np.all(error <= step / 2 + computing) and error.max() > 0


def test_float8_storage_saturates(tiny_path):
    x = jnp.asarray([[1e6, -1e6, 1.0]], jnp.float32)
    assert np.asarray(stored(x, "float8_e4m3fnuz")).tolist() == [[240.0, -240.0, 1.0]]


def test_rules_hold_at_their_sites_and_layers_only(taps_of, plain):
    rule = Rule((("score", "bfloat16"),), first=1, last=1)
    ruled = taps_of(replace(FP32, name="ruled", rules=(rule,)))
    assert np.array_equal(plain[0, "resid.out"], ruled[0, "resid.out"])
    assert np.array_equal(plain[1, "attn.q_rope"], ruled[1, "attn.q_rope"])
    assert not np.array_equal(plain[1, "attn.scores"], ruled[1, "attn.scores"])
    assert FP32.at("attn.scores", 2) == replace(FP32, rules=(rule,)).at("attn.scores", 2)


def numpy_dot(a, b, order):
    products = a[:, None, :] * b[None, :, :]
    if order == "pairwise":
        while products.shape[-1] > 1:
            if products.shape[-1] % 2:
                products = np.concatenate([products, np.zeros_like(products[..., :1])], -1)
            products = products[..., 0::2] + products[..., 1::2]
        return products[..., 0]
    parts = int(order.partition(":")[2] or 1)
    length = -(-products.shape[-1] // parts)
    sums = []
    for start in range(0, products.shape[-1], length):
        total = products[..., start]
        for k in range(start + 1, min(start + length, products.shape[-1])):
            total = total + products[..., k]
        sums.append(total)
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    return total


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("order", ["sequential", "pairwise", "split:3", "split:1"])
def test_orders_have_the_bits_of_a_plain_loop(order, dtype):
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.standard_normal((5, 37)), dtype) for _ in range(2))
    got = np.asarray(reduce.dot(a, b, order))
    ref = numpy_dot(np.asarray(a), np.asarray(b), order)
    assert got.dtype == ref.dtype
    assert np.array_equal(got, ref)


PROJECTED = {
    "attn.q": ("attn.norm", "q_NHD"),
    "attn.v": ("attn.norm", "v_KHD"),
    "attn.proj": ("attn.out", "proj_DNH"),
    "ffn.gate": ("ffn.norm", "gate_FD"),
    "ffn.down": ("ffn.act", "down_DF"),
    "logits": ("final.norm", "unembed_VD"),
}


@pytest.mark.parametrize("order", ["sequential", "pairwise", "split:4", "mfma:bf16"])
def test_an_order_rules_every_projection_bit_for_bit(tiny_path, order):
    oracle = Oracle.open(tiny_path, replace(FP32, name="o", order=order))
    taps = oracle.prefill(IDS, Taps(SITES)).taps
    for site, (source, name) in PROJECTED.items():
        layer, at = (-1, -1) if site == "logits" else (1, 1)
        weight = np.asarray(oracle.weights.load(name, at), np.float32)
        x = taps[layer, source].reshape(len(IDS), -1)
        w = weight.reshape(-1, x.shape[1])
        if order == "mfma:bf16":
            x, w = (np.pad(m, ((0, 0), (0, -m.shape[1] % 8))) for m in (x, w))
            x, w = (jnp.asarray(m, jnp.bfloat16) for m in (x, w))
            ref = mfma.matmul(x, w, jnp.zeros((len(x), len(w)), jnp.float32), "bf16")
        else:
            ref = numpy_dot(x, w, order)
        assert np.array_equal(taps[layer, site].reshape(len(IDS), -1), np.asarray(ref)), site


@pytest.mark.parametrize("order", ["sequential", "pairwise", "split:4"])
def test_an_order_rules_means_and_softmax_sums(tiny_path, order):
    """The sums in numpy; the division in XLA, which multiplies by reciprocals instead."""
    oracle = Oracle.open(tiny_path, replace(FP32, name="o", order=order))
    taps = oracle.prefill(IDS, Taps(SITES)).taps
    x = taps[0, "resid.mid"]
    total_T1 = jnp.asarray(numpy_dot(x, x, order).diagonal()[:, None])
    root_T1 = jnp.sqrt(total_T1 / np.float32(x.shape[1]) + np.float32(oracle.config.rms_eps))
    scale_1D = jnp.asarray(oracle.weights.load("ffn_norm_D", 0), jnp.float32)[None]
    assert np.array_equal(taps[0, "ffn.norm"], jnp.asarray(x) / root_T1 * scale_1D)
    score = jnp.asarray(taps[0, "attn.scores"])
    weight = jnp.exp(score - jnp.max(score, axis=-1, keepdims=True))
    rows, ones = np.asarray(weight).reshape(-1, len(IDS)), np.ones((1, len(IDS)), np.float32)
    total = jnp.asarray(numpy_dot(rows, ones, order).reshape(len(IDS), -1, 1))
    assert np.array_equal(taps[0, "attn.probs"], weight / total)


def test_an_order_may_hold_at_one_site_of_some_layers(taps_of, plain):
    rule = Rule((("order", "sequential"),), ("ffn.down",), 1, 1)
    ruled = taps_of(replace(FP32, name="ruled", rules=(rule,)))
    assert np.array_equal(plain[0, "ffn.down"], ruled[0, "ffn.down"])
    assert np.array_equal(plain[1, "ffn.act"], ruled[1, "ffn.act"])
    assert not np.array_equal(plain[1, "ffn.down"], ruled[1, "ffn.down"])


def test_matrix_core_order_is_the_matrix_core(taps_of, plain):
    taps = taps_of(replace(FP32, name="core", order="mfma:f16"))
    q, k = taps[0, "attn.q_rope"], taps[0, "kv.k"]
    q_MK, k_NK = (jnp.asarray(np.pad(x, ((0, 0), (0, 6))), jnp.float16) for x in (q[:, 4], k[:, 1]))
    zero = jnp.zeros((len(IDS), len(IDS)), jnp.float32)
    ref = np.asarray(mfma.matmul(q_MK, k_NK, zero, "f16")) * np.float32(10**-0.5)
    visible = np.tril(np.ones_like(ref, bool))
    assert np.array_equal(taps[0, "attn.scores"][:, 4][visible], ref[visible])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_polynomial_exponential_is_within_two_ulp(dtype):
    low = float(np.log(np.finfo(dtype).tiny)) * 0.99
    x = np.random.default_rng(0).uniform(low, 80, 20000).astype(dtype)
    got = np.asarray(
        ops.exponential(Arithmetic(dtype, dtype, dtype, exp="polynomial"), jnp.asarray(x))
    )
    ref = np.exp(x.astype(np.longdouble))
    ulp = np.abs(got - ref) / (ref * np.finfo(dtype).eps)
    assert ulp.max() < 2


def test_decode_equals_prefill_under_a_chosen_order(tiny_path):
    oracle = Oracle.open(tiny_path, replace(FP32, name="s", order="sequential"))
    whole = oracle.prefill(IDS[:4]).logits_TV[-1]
    last = oracle.decode(oracle.prefill(IDS[:3]).cache, IDS[3]).logits_TV[0]
    exact = Oracle.open(tiny_path, Policy.fp64()).prefill(IDS[:4]).logits_TV[-1]
    rounding = np.abs(whole - exact).max()
    assert rounding > 0 and np.abs(whole - last).max() <= 2 * rounding


@pytest.mark.parametrize(
    "change",
    [
        {"order": "backwards"},
        {"order": "split:0"},
        {"order": "mfma:int8"},
        {"kv": "int3"},
        {"score": "int8"},
        {"exp": "table"},
        {"rules": (Rule((("colour", "blue"),)),)},
        {"rules": (Rule((("kv", "int3"),)),)},
    ],
    ids=str,
)
def test_what_no_policy_can_be_is_refused(change):
    with pytest.raises(PrecisionError) as caught:
        replace(FP32, **change)
    assert "\n" not in str(caught.value)
