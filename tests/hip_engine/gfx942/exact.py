"""Exact arithmetic for references: rationals rounded once to a binary format."""

import math
from fractions import Fraction

import numpy as np

# dtype -> significand bits, least exponent of the last place, largest exponent.
FORMATS = {
    np.dtype(np.float16): (11, -24, 15),
    np.dtype(np.float32): (24, -149, 127),
    np.dtype(np.float64): (53, -1074, 1023),
}


def rounded(value: Fraction, dtype) -> float:
    """Round to nearest even; the result is exact as a Python float."""
    digits, least, largest = FORMATS[np.dtype(dtype)]
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    whole = round(size / unit)  # ties to even
    result = whole * unit
    if result >= Fraction(2) ** (largest + 1):
        return math.inf if value > 0 else -math.inf
    return float(result) if value > 0 else -float(result)


def fma(x: np.ndarray, y: np.ndarray, z: np.ndarray, dtype=None) -> np.ndarray:
    """x * y + z with one rounding to `dtype` (the dtype of x if None)."""
    dtype = np.dtype(dtype or x.dtype)
    out = np.empty(x.shape, dtype)
    for at in np.ndindex(x.shape):
        a, b, c = float(x[at]), float(y[at]), float(z[at])
        if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
            out[at] = special_fma(a, b, c)
            continue
        total = Fraction(a) * Fraction(b) + Fraction(c)
        zero = math.copysign(0.0, a) * math.copysign(1.0, b) + math.copysign(0.0, c)
        exact_zero = zero if not a * b and not c else 0.0
        out[at] = (
            rounded(total, dtype)
            if total
            else (exact_zero if not c and (a == 0 or b == 0) else 0.0)
        )
    return out


def special_fma(a: float, b: float, c: float) -> float:
    """fma where an input is not finite, without a product that overflows on its own."""
    if math.isnan(a) or math.isnan(b) or math.isnan(c):
        return math.nan
    if math.isinf(a) or math.isinf(b):
        if a == 0 or b == 0:
            return math.nan
        product = math.copysign(math.inf, a) * math.copysign(1.0, b)
        return math.nan if math.isinf(c) and c != product else product
    return c


def ldexp(x: np.ndarray, n: np.ndarray) -> np.ndarray:
    """x * 2**n with one rounding."""
    out = x.copy()
    for at in np.ndindex(x.shape):
        value = float(x[at])
        if math.isfinite(value) and value:
            power = max(-3000, min(3000, int(n[at])))
            out[at] = rounded(Fraction(value) * Fraction(2) ** power, x.dtype)
            if out[at] == 0:
                out[at] = math.copysign(0.0, value)
    return out
