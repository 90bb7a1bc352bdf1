"""The kernels' operations in fp64, and bounds of what fp32 may differ from them (Higham)."""

import numpy as np

U = 2.0**-24  # unit roundoff of fp32
# Measured on every fp32 in [-120, 120] against fp64, in ulps of the result; an ulp is at most 2 U.
EXP_ULPS, SILU_ULPS = 1.1, 2.9
SMALLEST = 2.0**-149
ROUNDOFF = {None: 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SPACING = {None: 0.0, "float16": 2.0**-24, "bfloat16": 2.0**-133}


def gamma(n: float) -> float:
    return n * U / (1 - n * U)


def gemv(w_FD, x_D, operands=None):
    """Any order of summation. `operands`: as in `attention`, for both factors."""
    w, x = w_FD.astype(np.float64), x_D.astype(np.float64)
    narrow, steps = ROUNDOFF[operands], 10 if operands else 1
    bound = (gamma(steps * x.size) + 2.01 * narrow) * (np.abs(w) @ np.abs(x))
    # Factors below the normal range of the operands are rounded to its spacing.
    return w @ x, bound + SPACING[operands] * (np.abs(w).sum(1) + np.abs(x).sum())


def rms_norm(x_TD, weight_D, eps):
    """The root halves the error of the mean; root, division and two products add U each."""
    x = x_TD.astype(np.float64)
    mean = np.mean(x * x, axis=1, keepdims=True)
    ref = x / np.sqrt(mean + eps) * weight_D
    return ref, (gamma(x.shape[1] + 2) / 2 + gamma(5)) * np.abs(ref)


def rope(x_TNH, cos_TH2, sin_TH2):
    """Interleaved pairs; the table's fp32 values are exact inputs."""
    x = x_TNH.astype(np.float64)
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = cos_TH2.astype(np.float64)[:, None], sin_TH2.astype(np.float64)[:, None]
    ref, bound = np.empty_like(x), np.empty_like(x)
    ref[..., 0::2], ref[..., 1::2] = a * c - b * s, a * s + b * c
    bound[..., 0::2] = gamma(2) * (np.abs(a * c) + np.abs(b * s))
    bound[..., 1::2] = gamma(2) * (np.abs(a * s) + np.abs(b * c))
    return ref, bound


def swiglu(gate, up):
    g, u = gate.astype(np.float64), up.astype(np.float64)
    with np.errstate(over="ignore"):
        ref = g / (1 + np.exp(-g)) * u
    # Where e^-|x| is subnormal, its error of half SMALLEST is multiplied by gate and up.
    tiny = SMALLEST * (1 + (1 + np.minimum(np.abs(g), 110)) * np.abs(u))
    return ref, (2 * SILU_ULPS + 1) * U * np.abs(ref) + tiny


def attention(q_NH, k_SKH, v_SKH, softcap=0.0, operands=None):
    """An error d of the scores moves weights by exp(+-2d); three exponentials meet in a weight.

    `operands`: "float16" or "bfloat16" where matrix cores multiply: q and the weights are rounded
    to it, and every step of a product is truncated at 24 bits below its largest term and again at
    the accumulator (numerics.md), at most 10 fp32 roundings of the largest partial sum.
    """
    q, k, v = (a.astype(np.float64) for a in (q_NH, k_SKH, v_SKH))
    (N, H), (S, K, _) = q.shape, k.shape
    kv_head = np.arange(N) // (N // K)
    narrow = ROUNDOFF[operands]
    steps = 10 if operands else 1
    score_NS = np.einsum("NH,SNH->NS", q, k[:, kv_head]) * H**-0.5
    absolute_NS = np.einsum("NH,SNH->NS", np.abs(q), np.abs(k[:, kv_head])) * H**-0.5
    error_N = (gamma(steps * (H + 3)) + 1.01 * narrow) * absolute_NS.max(1)
    if softcap:
        score_NS = softcap * np.tanh(score_NS / softcap)
        error_N += 16 * U * softcap
    largest_N = np.abs(score_NS).max(1)
    p_NS = np.exp(score_NS - score_NS.max(1, keepdims=True))
    p_NS /= p_NS.sum(1, keepdims=True)
    ref = np.einsum("NS,SNH->NH", p_NS, v[:, kv_head])
    # Subtractions of the maximum round too: U * 2 |score| each, in exponents.
    exponent_N = error_N + 3 * 2 * U * largest_N
    relative_N = np.expm1(2 * exponent_N) + 2 * gamma(steps * (S + 8)) + 2 * 3 * 2 * EXP_ULPS * U
    spread = np.einsum("NS,SNH->NH", p_NS, np.abs(v[:, kv_head]))
    bound = (relative_N + 2.02 * narrow)[:, None] * spread + SMALLEST
    # Weights below the normal range of the operands are rounded to its spacing.
    return ref, bound + SPACING[operands] * np.abs(v[:, kv_head]).sum(0)


def assert_within(ref, got, bound):
    """Missing, shape, non-finite, numeric, in that order; an empty comparison is an error."""
    assert got.size, "nothing was compared"
    assert ref.shape == got.shape, (ref.shape, got.shape)
    assert np.isfinite(got).all(), f"{np.count_nonzero(~np.isfinite(got))} not finite"
    ratio = np.abs(got - ref) / np.maximum(bound, SMALLEST)
    worst = np.unravel_index(ratio.argmax(), ratio.shape)
    assert ratio.max() <= 1, f"{ratio.max():.3g} bounds at {worst}: {ref[worst]}, {got[worst]}"
