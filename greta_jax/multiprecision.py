"""The ops of a layer written anew in mpmath, a row at a time: what fp64 is compared with.

Nothing of greta_jax.ops is used. Arguments are fp64 arrays, taken as exact; results are rounded to
fp64 once, from DIGITS decimal digits.
"""

from collections.abc import Sequence

import mpmath
import numpy as np

DIGITS = 40
"""More than a double-double has."""


def exact(values: np.ndarray) -> list:
    """fp64 values as mpmath numbers."""
    return [mpmath.mpf(float(value)) for value in values]


def rounded(values: Sequence) -> np.ndarray:
    """mpmath numbers to fp64."""
    return np.array([float(value) for value in values])


def attend(q_H, k_SH, v_SH, scale: float, cap: float | None) -> np.ndarray:
    """Softmax of q.k * scale, softly capped, and the values so weighted: H."""
    with mpmath.workdps(DIGITS):
        q = exact(q_H)
        scores = [mpmath.fdot(q, exact(k_H)) * mpmath.mpf(scale) for k_H in k_SH]
        scores = [soft_cap(score, cap) for score in scores]
        weights = [mpmath.exp(score - max(scores)) for score in scores]
        total = mpmath.fsum(weights)
        return rounded([mpmath.fdot(weights, exact(v_S)) / total for v_S in v_SH.T])


def soft_cap(x, cap: float | None):
    """cap * tanh(x / cap)."""
    return x if cap is None else cap * mpmath.tanh(x / mpmath.mpf(cap))


def rms_norm(x_D, scale_D, eps: float) -> np.ndarray:
    """x / sqrt(mean of squares + eps) * scale."""
    with mpmath.workdps(DIGITS):
        x = exact(x_D)
        root = mpmath.sqrt(mpmath.fsum(v * v for v in x) / len(x) + mpmath.mpf(eps))
        return rounded([v / root * s for v, s in zip(x, exact(scale_D), strict=True)])


def project(x_D, row_ED) -> np.ndarray:
    """Some rows of a matrix times x."""
    with mpmath.workdps(DIGITS):
        x = exact(x_D)
        return rounded([mpmath.fdot(x, exact(row_D)) for row_D in row_ED])


def frequencies(base: float, dim: int) -> list:
    """Radians a position by which each pair turns: base^(-2i/dim)."""
    with mpmath.workdps(DIGITS):
        return [mpmath.mpf(base) ** (-mpmath.mpf(2 * i) / dim) for i in range(dim // 2)]


def rotate(x_H, position: int, frequency_R, magnitude: float, interleaved: bool) -> np.ndarray:
    """RoPE of one head, its angles made here; elements beyond the pairs stay."""
    with mpmath.workdps(DIGITS):
        turned = exact(x_H)
        x, R = list(turned), len(frequency_R)
        for i, frequency in enumerate(frequency_R):
            at, other = (2 * i, 2 * i + 1) if interleaved else (i, i + R)
            cos, sin = (magnitude * f(position * frequency) for f in (mpmath.cos, mpmath.sin))
            turned[at] = x[at] * cos - x[other] * sin
            turned[other] = x[at] * sin + x[other] * cos
        return rounded(turned)


def gated(gate_F, up_F, activation: str) -> np.ndarray:
    """silu(gate) * up, or gelu in its tanh form."""
    with mpmath.workdps(DIGITS):
        function = {"silu": _silu, "gelu": _gelu}[activation]
        return rounded([function(g) * u for g, u in zip(exact(gate_F), exact(up_F), strict=True)])


def _silu(x):
    return x / (1 + mpmath.exp(-x))


def _gelu(x):
    inner = mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)
    return x * (1 + mpmath.tanh(inner)) / 2
