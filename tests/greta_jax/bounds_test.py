"""Bounds: never exceeded by an honest evaluation, and not so wide that they say nothing."""

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from greta_jax import reduce
from greta_jax.architectures import ARCHITECTURES
from greta_jax.bounds import OpPrecision, bound
from greta_jax.errors import PrecisionError
from greta_jax.graph import FINAL_NORM, LOGITS, layer_ops
from greta_jax.model import Oracle
from greta_jax.op_bounds import OP_BOUNDS
from greta_jax.precision import Policy
from greta_jax.replay import INPUTS, replay
from greta_jax.rope import RopeScaling
from greta_jax.sum_bounds import total_error
from greta_jax.taps import SITES

T, S = 6, 23
SINGLE = {"store": "float32", "accumulate": "float32"}


@pytest.fixture(scope="module")
def oracle(quantised_path):
    return Oracle.open(quantised_path, Policy.fp64())


def draw(oracle, name: str, rng, spread: float) -> np.ndarray:
    c = oracle.config
    if name == "positions":
        return np.arange(S - T, S)
    if name == "token_ids":
        return rng.integers(0, c.vocab, T)
    q, k, ffn = (T, c.heads, c.head_dim), (T, c.kv_heads, c.head_dim), (T, c.ffn)
    slab = (S, c.kv_heads, c.head_dim)
    shapes = {"attn.q": q, "attn.q_rope": q, "attn.out": q, "attn.k": k, "attn.k_rope": k}
    shapes |= {"attn.v": k, "kv.k": slab, "kv.v": slab}
    shapes |= {"ffn.gate": ffn, "ffn.up": ffn, "ffn.act": ffn}
    values = rng.standard_normal(shapes.get(name, (T, c.dim))) * spread
    values *= 2.0 ** rng.integers(-8, 8, values.shape) if spread > 2 else 1
    return values.astype(np.float32).astype(np.float64)


def cases(oracle, site, rng, spread):
    return {name: draw(oracle, name, rng, spread) for name in INPUTS[site]}


def tightness(oracle, site, inputs) -> float:
    """Largest |fp32 - fp64| over its bound; raises if any element exceeds its bound."""
    ref = replay(oracle, site, 0, inputs)
    got = replay(oracle.with_policy(Policy.fp32()), site, 0, inputs).astype(np.float64)
    limit = bound(oracle, site, 0, inputs, SINGLE | {"rescales": 0})
    assert limit.shape == ref.shape
    visible = np.isfinite(ref)
    assert np.array_equal(visible, np.isfinite(got)), site
    error = np.abs(np.where(visible, got, 0) - np.where(visible, ref, 0))
    assert np.all(error <= limit), (site, (error / limit).max())
    return float((error / limit).max())


@pytest.mark.parametrize("site", SITES)
def test_fp32_never_exceeds_the_bound(oracle, site):
    rng = np.random.default_rng(SITES.index(site))
    for spread in (1.0, 1e-3, 4.0):
        for _ in range(4):
            tightness(oracle, site, cases(oracle, site, rng, spread))


def length(oracle, site) -> int:
    """Terms of the site's sum."""
    c = oracle.config
    dim = dict.fromkeys(("attn.norm", "attn.q", "attn.k", "attn.v", "ffn.norm"), c.dim)
    dim |= dict.fromkeys(("ffn.gate", "ffn.up", "final.norm", "logits"), c.dim)
    dim |= {"attn.proj": c.heads * c.head_dim, "ffn.down": c.ffn, "attn.scores": c.head_dim}
    dim |= dict.fromkeys(("attn.probs", "attn.out"), c.head_dim + S)
    return dim.get(site, 1)


@pytest.mark.parametrize("site", [s for s in SITES if s not in ("embed", "kv.k", "kv.v")])
def test_bound_is_as_tight_as_its_theory(oracle, site, record_property):
    """A sum of n terms of random sign errs by about u times its size, and n*u is allowed."""
    rng = np.random.default_rng(3)
    seen = max(tightness(oracle, site, cases(oracle, site, rng, 1.0)) for _ in range(4))
    record_property("tightness", seen)
    assert seen > 0.2 / length(oracle, site), seen


WEIGHTS = {"attn.q": "q_NHD", "attn.proj": "proj_DNH", "ffn.down": "down_DF"}


@pytest.mark.parametrize("site", WEIGHTS)
def test_a_sequential_sum_stays_within_the_bound_and_walks_like_sqrt_n(oracle, site):
    """In numpy, and with no cancellation in the first row: the inputs take its weights' signs."""
    inputs = cases(oracle, site, np.random.default_rng(11), 1.0)
    (name, x), *_ = inputs.items()
    weight = np.asarray(oracle.weights.load(WEIGHTS[site], 0)).astype(np.float32)
    weight_EX = weight.reshape(-1, length(oracle, site))
    x_TX = np.abs(x).reshape(T, -1) * np.sign(weight_EX[0])
    products = x_TX.astype(np.float32)[:, None, :] * weight_EX[None]
    got = np.cumsum(products, axis=-1, dtype=np.float32)[..., -1]
    inputs[name] = x_TX.reshape(x.shape)
    ref = replay(oracle, site, 0, inputs).reshape(got.shape)
    ratio = np.abs(got - ref) / bound(oracle, site, 0, inputs, SINGLE).reshape(got.shape)
    assert ratio.max() <= 1
    assert ratio[:, 0].max() > 0.05 / np.sqrt(length(oracle, site))


def test_a_declared_chain_of_additions_narrows_the_bound(oracle):
    inputs = cases(oracle, "attn.q", np.random.default_rng(1), 1.0)
    whole = bound(oracle, "attn.q", 0, inputs, SINGLE)
    lanes = bound(oracle, "attn.q", 0, inputs, SINGLE | {"chain": 256 // 64 + 6})
    assert np.all(lanes < whole / 8)


def test_an_fp16_accumulation_exceeds_the_bound_of_fp32(oracle):
    """The gate can fail: fault G3, half-precision accumulation, is outside."""
    inputs = cases(oracle, "attn.q", np.random.default_rng(1), 1.0)
    x = inputs["attn.norm"].astype(np.float16)
    weight = np.asarray(oracle.weights.load("q_NHD", 0)).astype(np.float16).reshape(-1, x.shape[1])
    got = np.cumsum(x[:, None, :] * weight[None], axis=-1, dtype=np.float16)[..., -1]
    ref = replay(oracle, "attn.q", 0, inputs)
    error = np.abs(got.reshape(ref.shape) - ref)
    assert np.mean(error > bound(oracle, "attn.q", 0, inputs, SINGLE)) > 0.5
    half = bound(oracle, "attn.q", 0, inputs, {"store": "float16", "accumulate": "float16"})
    assert np.all(error <= half)


def test_fp16_storage_of_the_cache_is_covered(oracle):
    inputs = cases(oracle, "kv.k", np.random.default_rng(2), 1.0)
    x = inputs["attn.k_rope"]
    limit = bound(oracle, "kv.k", 0, inputs, {"store": "float16", "accumulate": "float32"})
    error = np.abs(x.astype(np.float16).astype(np.float64) - x)
    assert np.all(error <= limit) and (error / limit).max() > 0.5


def test_a_scaled_fp8_cache_is_covered_to_its_subnormals_and_beyond_its_largest(oracle):
    inputs = cases(oracle, "kv.k", np.random.default_rng(3), 1.0)
    scale = 2.0 ** np.arange(-6, oracle.config.kv_heads - 6)
    x = inputs["attn.k_rope"] * 2.0 ** np.random.default_rng(5).integers(-12, 12, (T, 1, 1))
    largest = 240.0
    held = np.clip(x / scale[:, None], -largest, largest).astype("float8_e4m3fnuz")
    error = np.abs(held.astype(np.float64) * scale[:, None] - x)
    declared = {"store": "float8_e4m3fnuz", "scale": tuple(scale)}
    limit = bound(oracle, "kv.k", 0, {"attn.k_rope": x}, declared)
    assert np.all(error <= limit) and (error / limit).max() > 0.5
    assert (np.abs(x) > largest * scale[:, None]).any() and (held == 0).any()
    other = bound(oracle, "kv.k", 0, {"attn.k_rope": x}, declared | {"scale": None})
    assert np.any(error > other), "a scale that is not declared is seen"


@pytest.mark.parametrize("scale", [0.3, 0.0, -2.0, float("nan"), float("inf")])
def test_a_scale_that_rounds_has_no_bound(scale):
    with pytest.raises(PrecisionError, match="use powers of two"):
        OpPrecision(store="float8_e4m3fnuz", scale=(1.0, scale))


def test_rounding_probabilities_and_operands_is_covered_when_declared(oracle):
    """Attention with f16 operands, as a matrix core takes them, in numpy."""
    inputs = cases(oracle, "attn.out", np.random.default_rng(4), 1.0)
    c = oracle.config
    k, v = (inputs[n].astype(np.float16).astype(np.float32) for n in ("kv.k", "kv.v"))
    q = inputs["attn.q_rope"].astype(np.float16).astype(np.float32)
    q = q.reshape(T, c.kv_heads, -1, c.head_dim)
    scores = np.einsum("TKGH,SKH->TKGS", q, k) * np.float32(c.head_dim**-0.5)
    later = np.arange(S)[None, :] > inputs.get("positions", np.arange(S - T, S))[:, None]
    scores[np.broadcast_to(later[:, None, None], scores.shape)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    total = p.sum(-1, keepdims=True)
    p = p.astype(np.float16).astype(np.float32)
    got = (np.einsum("TKGS,SKH->TKGH", p, v) / total.reshape(*total.shape[:-1], 1)).reshape(
        T, c.heads, -1
    )
    error = np.abs(got - replay(oracle, "attn.out", 0, inputs))
    declared = SINGLE | {"operand": "float16", "rescales": 0}
    assert np.all(error <= bound(oracle, "attn.out", 0, inputs, declared))
    assert np.any(error > bound(oracle, "attn.out", 0, inputs, SINGLE))


@pytest.mark.parametrize("made", ["powers", "repeated products"])
def test_angles_in_fp32_are_covered_when_declared_and_seen_when_not(oracle, made):
    rng, H = np.random.default_rng(8), oracle.config.head_dim
    inputs = cases(oracle, "attn.q_rope", rng, 1.0) | {"positions": np.arange(90, 90 + T)}
    base, R = np.float32(oracle.config.rope_base), H // 2
    exponent_R = np.arange(R, dtype=np.float32) * np.float32(2 / H)
    step = np.power(base, np.float32(-2 / H))
    products_R = np.cumprod(np.full(R, step)) / step
    frequency_R = 1 / np.power(base, exponent_R) if made == "powers" else products_R
    assert frequency_R.dtype == np.float32
    angle_TR = inputs["positions"].astype(np.float32)[:, None] * frequency_R
    cos, sin = (f(angle_TR.astype(np.float64))[:, None] for f in (np.cos, np.sin))
    even, odd = inputs["attn.q"][..., 0::2], inputs["attn.q"][..., 1::2]
    got = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    ref = replay(oracle, "attn.q_rope", 0, inputs)
    error = np.abs(got.reshape(ref.shape) - ref)
    assert np.any(error > bound(oracle, "attn.q_rope", 0, inputs, SINGLE))
    declared = bound(oracle, "attn.q_rope", 0, inputs, SINGLE | {"angle": "float32"})
    assert np.all(error <= declared)


def test_an_error_of_the_angle_grows_with_the_magnitude_of_the_rotation(oracle):
    inputs = cases(oracle, "attn.q_rope", np.random.default_rng(8), 1.0)
    scaled = copy.copy(oracle)
    scaled.config = dataclasses.replace(oracle.config, rope_scaling=RopeScaling(attn_factor=8.0))

    def of_the_angle(model):
        with_it = bound(model, "attn.q_rope", 0, inputs, SINGLE | {"angle": "float32"})
        return with_it - bound(model, "attn.q_rope", 0, inputs, SINGLE)

    plain, grown = of_the_angle(oracle), of_the_angle(scaled)
    assert np.any(plain > 0) and np.all((grown >= 7 * plain) & (grown <= 9 * plain))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_sum_longer_than_its_roundoff_allows_keeps_a_bound(dtype):
    """n*u is above 1 and all terms of one sign: in any of four orders no more is lost than said."""
    rng, n = np.random.default_rng(2), 4096
    terms = np.abs(rng.standard_normal((8, n))).astype(jnp.dtype(dtype))
    limit = total_error(OpPrecision(dtype, dtype), terms.astype(np.float64), rounded=False)
    for order in (np.arange(n), np.arange(n)[::-1], np.argsort(terms[0]), rng.permutation(n)):
        got = np.asarray(reduce.total(jnp.asarray(terms[:, order]), "sequential"), np.float64)
        error = np.abs(got[:, 0] - terms.astype(np.float64).sum(axis=-1))
        assert np.all(error <= limit) and np.all(np.isfinite(limit))
    running = OpPrecision(dtype, dtype, "sequential")
    limit = total_error(running, terms.astype(np.float64), rounded=False)
    got = np.asarray(reduce.total(jnp.asarray(terms), "sequential"), np.float64)[:, 0]
    error = np.abs(got - terms.astype(np.float64).sum(axis=-1))
    assert np.all(error <= limit) and np.all(error > limit / 10)


def test_every_op_of_every_architecture_has_a_bound():
    tables = [layer_ops(row, scaled) for row in ARCHITECTURES.values() for scaled in (False, True)]
    rows = {op.function.__name__ for table in tables for op in (*table, FINAL_NORM, LOGITS)}
    assert rows == set(OP_BOUNDS)


def test_unknown_declaration_is_refused_by_name(oracle):
    with pytest.raises(PrecisionError, match="accumulator"):
        bound(oracle, "embed", -1, {"token_ids": np.array([1])}, {"accumulator": "float32"})


@pytest.mark.parametrize("site", ["attn.proj", "ffn.down", "attn.scores", "attn.out"])
def test_the_probabilistic_bound_is_narrower_and_still_not_exceeded(oracle, site):
    rng = np.random.default_rng(9)
    for _ in range(4):
        inputs = cases(oracle, site, rng, 1.0)
        ref = replay(oracle, site, 0, inputs)
        got = replay(oracle.with_policy(Policy.fp32()), site, 0, inputs).astype(np.float64)
        certain = SINGLE | {"rescales": 0}
        likely = bound(oracle, site, 0, inputs, certain | {"failure": 1e-9})
        visible = np.isfinite(ref)
        assert np.all(np.abs(got[visible] - ref[visible]) <= likely[visible])
        assert np.all(likely <= bound(oracle, site, 0, inputs, certain))
    if site in ("attn.proj", "ffn.down"):
        assert np.all(likely < 0.6 * bound(oracle, site, 0, inputs, certain))


OF_TOKENS = ["attn.norm", "attn.q", "attn.q_rope", "ffn.act", "logits"]


@pytest.mark.parametrize("site", OF_TOKENS)
def test_a_nan_of_one_token_leaves_the_bounds_of_the_others(oracle, site):
    inputs = cases(oracle, site, np.random.default_rng(5), 1.0)
    ref = bound(oracle, site, 0, inputs, SINGLE)
    first = next(name for name in INPUTS[site] if name != "positions")
    inputs[first][2].flat[3] = np.nan
    got = bound(oracle, site, 0, inputs, SINGLE)
    others = np.arange(T) != 2
    assert np.all(np.isfinite(got[others]))
    np.testing.assert_allclose(got[others], ref[others], rtol=1e-12)
