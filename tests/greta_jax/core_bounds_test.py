"""Bounds of matrix-core groups against greta_jax.mfma: never exceeded, and near."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import tightness
from greta_jax import mfma
from greta_jax.bounds import bound
from greta_jax.core_bounds import operand, operand_error
from greta_jax.declared import OpPrecision
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.replay import replay
from greta_jax.sum_bounds import dot_error

M, K = 48, 96
STYLES = ("ordinary", "positive", "mixed", "cancelling", "growing", "sparse", "subnormal", "short")


def declared(kind: str) -> OpPrecision:
    return OpPrecision("float32", "float32", f"mfma:{kind}")


def draw(rng, style: str, kind: str) -> np.ndarray:
    """Operands of the kind, exact in fp64."""
    x = rng.standard_normal((M, K))
    span = min(mfma.KINDS[kind].bias, 40) // 2
    if style == "positive":
        x = np.abs(x)
    if style == "mixed":
        x = x * 2.0 ** rng.integers(-span, span - 1, x.shape)
    if style == "cancelling":
        x[:, 1::2] = -x[:, ::2] * (1 + 2.0**-3)
    if style == "growing":
        x = x * 2.0 ** np.linspace(-span, span - 2, K)
    if style == "sparse":
        x = x * (rng.random(x.shape) < 0.1)
    if style == "subnormal":
        x = x * 2.0 ** (mfma.KINDS[kind].emin + rng.integers(-6, 3, x.shape))
    if style == "short":
        x[:, 3:] = 0
    return operand(declared(kind), x)


def product(a_MK, b_NK, kind: str) -> np.ndarray:
    a_MK, b_NK = (jnp.asarray(x).astype(mfma.KINDS[kind].dtype) for x in (a_MK, b_NK))
    zero_MN = jnp.zeros((len(a_MK), len(b_NK)), jnp.float32)
    return np.asarray(mfma.matmul(a_MK, b_NK, zero_MN, kind), np.float64)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", mfma.KINDS)
def test_no_matrix_core_exceeds_the_bound_of_its_groups_nor_of_any_order(kind, style):
    """Thousands of sums each: k ascending, and shuffled for the bound of any order."""
    rng = np.random.default_rng([len(style), *map(ord, kind)])
    a_MK, b_MK = draw(rng, style, kind), draw(rng, style, kind)
    ref_MM, pair = a_MK @ b_MK.T, ((a_MK, None), (b_MK, None))
    error_MM = np.abs(product(a_MK, b_MK, kind) - ref_MM)
    limit_MM = dot_error(declared(kind), *pair)
    likely_MM = dot_error(replace(declared(kind), failure=1e-9), *pair)
    assert np.all(error_MM <= likely_MM) and np.all(likely_MM <= limit_MM)
    if style == "ordinary":
        assert np.max(error_MM / limit_MM) > 0.05
    shuffled = rng.permutation(K)
    error_MM = np.abs(product(a_MK[:, shuffled], b_MK[:, shuffled], kind) - ref_MM)
    assert np.all(error_MM <= dot_error(OpPrecision(), *pair))


def test_a_bound_that_follows_one_order_of_k_is_not_claimed_for_another():
    """Two large terms that cancel within a group; the same, with small ones between them."""
    near_1K = np.full((1, 64), 2.0**-13)
    near_1K[0, :2] = 2.0**14, -(2.0**14)
    far_1K = np.concatenate([near_1K[:, :1], near_1K[:, 2:], near_1K[:, 1:2]], axis=1)
    ones_1K = np.full((1, 64), 2.0**-1)
    limit = dot_error(declared("f16"), (near_1K, None), (ones_1K, None))
    ref = near_1K @ ones_1K.T
    assert np.abs(product(near_1K, ones_1K, "f16") - ref) <= limit
    assert np.abs(product(far_1K, ones_1K, "f16") - ref) > limit
    assert np.abs(product(far_1K, ones_1K, "f16") - ref) <= dot_error(
        OpPrecision(), (near_1K, None), (ones_1K, None)
    )


@pytest.mark.parametrize("kind", mfma.KINDS)
def test_uncertain_operands_are_covered_by_their_wobble(kind):
    rng = np.random.default_rng(7)
    a_MK, b_MK = draw(rng, "ordinary", kind), draw(rng, "ordinary", kind)
    wobble_MK = np.abs(a_MK) * rng.random(a_MK.shape) * 0.25
    moved_MK = operand(declared(kind), a_MK + wobble_MK * rng.uniform(-0.5, 0.5, a_MK.shape))
    wobble_MK = np.maximum(wobble_MK, np.abs(moved_MK - a_MK))
    error_MM = np.abs(product(moved_MK, b_MK, kind) - moved_MK @ b_MK.T)
    certain = dot_error(declared(kind), (moved_MK, None), (b_MK, None))
    for scaled in (False, True):
        limit_MM = dot_error(declared(kind), (a_MK, wobble_MK), (b_MK, None), scaled)
        assert np.all(error_MM <= limit_MM) and np.median(limit_MM / certain) > 1


@pytest.mark.parametrize("kind", ["f16", "bf16", "xf32"])
def test_operands_move_by_no_more_than_is_said(kind):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(4096) * 2.0 ** rng.integers(-30, 12, 4096)
    moved = np.abs(operand(declared(kind), x) - x)
    assert np.all(moved <= operand_error(declared(kind), np.abs(x))) and moved.max() > 0
    unmoved = operand(declared(kind), x)
    assert np.array_equal(operand(declared(kind), unmoved), unmoved)


def test_a_product_too_large_for_a_core_has_no_bound():
    huge = (np.full((1, 8), 2.0**70), None)
    assert np.isinf(dot_error(declared("bf16"), huge, huge)).all()


@pytest.mark.parametrize("site", ["attn.q", "attn.scores", "attn.out"])
def test_operands_in_bf16_exceed_the_bound_of_an_f16_core(tiny_path, site):
    """The gate can fail."""
    oracle = Oracle.open(tiny_path, Policy.fp64())
    inputs = tightness.draw(oracle, site, "ordinary", np.random.default_rng(0), 16, "float32")
    ref = replay(oracle, site, 0, inputs)
    limit = bound(oracle, site, 0, inputs, tightness.Case("float32", "mfma:f16").declared(True))
    error = {}
    for kind in ("f16", "bf16"):
        policy = tightness.Case("float32", f"mfma:{kind}").policy
        got = replay(oracle.with_policy(policy), site, 0, inputs)
        error[kind] = np.where(
            np.isfinite(ref), np.abs(got - np.where(np.isfinite(ref), ref, 0)), 0
        )
    assert np.all(error["f16"] <= limit) and np.any(error["bf16"] > limit)
