"""Predicted bits against the same arithmetic written out scalar by scalar."""

import numpy as np
import pytest

from greta_jax.determined import predict
from greta_jax.errors import PrecisionError
from greta_jax.model import Oracle
from greta_jax.precision import Policy

RNG = np.random.default_rng(7)
F = np.float32


@pytest.fixture(scope="module")
def oracle(tiny_path):
    return Oracle.open(tiny_path, Policy.fp32())


def rows(*shape):
    return RNG.standard_normal((3, *shape)).astype(F)


def test_what_is_rounded_once(oracle):
    x, y = rows(9), rows(9)
    found = predict(oracle, "resid.mid", 0, {"resid.in": x, "attn.proj": y}, "once", "float32")
    assert np.array_equal(found, x + y) and found.dtype == F
    slot = predict(oracle, "kv.v", 0, {"attn.v": x}, "once", "float16")
    assert np.array_equal(slot, x.astype(np.float16))


def fused(a, b, c):
    """a * b + c rounded once: exact in binary128 or wider, where NumPy has it."""
    return F(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no long double to check with")
def test_rope_is_two_fused_products_a_pair(oracle):
    heads, size = oracle.config.dimensions["N"], oracle.config.dimensions["H"]
    x, positions = rows(heads, size), np.array([0, 5, 77])
    read = {"attn.q": x, "positions": positions}
    found = predict(oracle, "attn.q_rope", 0, read, "fma_pairs", "float32")
    cos, sin = (table.astype(F) for table in oracle.config.rotation(positions))
    for t, n, r in np.ndindex(3, heads, size // 2):
        a, b = x[t, n, 2 * r], x[t, n, 2 * r + 1]
        assert found[t, n, 2 * r] == fused(a, cos[t, r], -(b * sin[t, r]))
        assert found[t, n, 2 * r + 1] == fused(a, sin[t, r], b * cos[t, r])


@pytest.mark.parametrize("waves", [1, 4])
def test_rms_norm_sums_lanes_by_a_tree_and_then_waves_in_order(waves, oracle):
    D = oracle.config.dim
    x = rows(D)
    found = predict(oracle, "attn.norm", 0, {"resid.in": x}, f"waves:{waves}", "float32")
    weight = np.asarray(oracle.weights.load("attn_norm_D", 0), F)
    for t in range(3):
        lanes = np.zeros(64 * waves, F)
        for i in range(D):
            lanes[i % len(lanes)] = fused(x[t, i], x[t, i], lanes[i % len(lanes)])
        sums = []
        for wave in lanes.reshape(waves, 64):
            while len(wave) > 1:
                wave = np.array([wave[i] + wave[i + 1] for i in range(0, len(wave), 2)], F)
            sums.append(wave[0])
        total = sums[0]
        for one in sums[1:]:
            total = F(total + one)
        scale = F(1) / np.sqrt(total / F(D) + F(oracle.config.rms_eps))
        assert np.array_equal(found[t], x[t] * scale * weight)


def test_inputs_that_are_not_as_stored_predict_nothing(oracle):
    assert predict(oracle, "kv.v", 0, {"attn.v": np.ones((1, 2, 4))}, "once", "float16") is None


@pytest.mark.parametrize("bits", ["once", "lanes:8", ""])
def test_an_arithmetic_that_is_not_modelled_there_is_refused(oracle, bits):
    read = {"resid.in": rows(oracle.config.dim), "x": rows(oracle.config.dim)}
    with pytest.raises(PrecisionError, match="not modelled at attn.norm"):
        predict(oracle, "attn.norm", 0, read, bits, "float32")
