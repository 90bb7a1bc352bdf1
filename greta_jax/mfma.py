"""CDNA3 matrix-core arithmetic, bit by bit, as vectorised integer JAX.

AMD publishes no arithmetic specification. The model is the one that numerics.md section 1 states
(MMA-Sim, arXiv 2511.10909, found by probing hardware); tests compare every kind with mmasim. Needs
jax x64, for the 64-bit accumulator.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from greta_jax.errors import PrecisionError
from greta_jax.precision import require_x64

ABSENT = -(2**20)
"""Exponent of a zero product: below every real one."""

FP32_BIAS, FP32_FRACTION, FP32_EMIN, FP32_INF = 127, 23, -126, 0x7F800000


@dataclass(frozen=True)
class Kind:
    """An operand format: field widths, exponent bias, and how many k one step sums."""

    dtype: str
    bits: int
    exponent_bits: int
    fraction_bits: int
    bias: int
    group: int
    fnuz: bool = False
    dropped_bits: int = 0

    @property
    def emin(self) -> int:
        """Exponent of the subnormals."""
        return 1 - self.bias


KINDS = {
    "f16": Kind("float16", 16, 5, 10, 15, 8),
    "bf16": Kind("bfloat16", 16, 8, 7, 127, 8),
    "xf32": Kind("float32", 32, 8, 10, 127, 4, dropped_bits=13),
    "fp8": Kind("float8_e4m3fnuz", 8, 4, 3, 8, 16, fnuz=True),
    "bf8": Kind("float8_e5m2fnuz", 8, 5, 2, 16, 16, fnuz=True),
}
"""Kinds that accumulate in aligned groups. `f32` is a chain of fused multiply-adds."""


def matmul(a_MK, b_NK, c_MN, a_kind: str, b_kind: str | None = None, group: int | None = None):
    """D = A B^T + C as v_mfma_f32 computes it, k in ascending order, in fp32.

    a_MK and b_NK hold the kind's dtype (float32 for xf32 and f32). K is a whole number of groups;
    `group` is given for the instructions whose K is shorter (4 for 4x4x4).

    Raises:
      PrecisionError: jax x64 is off; unknown kind; K is no multiple of the group.
    """
    require_x64("greta_jax.mfma")
    b_kind = b_kind or a_kind
    if a_kind == b_kind == "f32":
        return _fma_chain(jnp.asarray(a_MK), jnp.asarray(b_NK), jnp.asarray(c_MN))
    unknown = {a_kind, b_kind} - set(KINDS)
    if unknown:
        raise PrecisionError(
            f"no matrix core kind {sorted(unknown)}", remedy=f"known are {', '.join(KINDS)} and f32"
        )
    group = group or KINDS[a_kind].group
    if a_MK.shape[1] % group:
        raise PrecisionError(
            f"K = {a_MK.shape[1]} is no multiple of the group of {group}",
            remedy="pad both operands with zeros",
        )
    return _matmul(jnp.asarray(a_MK), jnp.asarray(b_NK), jnp.asarray(c_MN), a_kind, b_kind, group)


@partial(jax.jit, static_argnames=("a_kind", "b_kind", "group"))
def _matmul(a_MK, b_NK, c_MN, a_kind, b_kind, group):
    a, b = _decode(a_MK, KINDS[a_kind]), _decode(b_NK, KINDS[b_kind])
    fraction = KINDS[a_kind].fraction_bits + KINDS[b_kind].fraction_bits
    limited = KINDS[a_kind].exponent_bits == 8
    step = _paired_step if KINDS[a_kind].fnuz else _plain_step

    def grouped(x):
        return jnp.moveaxis(x.reshape(x.shape[0], -1, group), 1, 0)

    def body(c_bits_MN, operands):
        (am, ae, an, ai), (bm, be, bn, bi) = operands
        product = _products(am, ae, bm, be)
        bits = step(product, fraction, c_bits_MN)
        special = _special(product, (am, an, ai), (bm, bn, bi), c_bits_MN, fraction, limited)
        return jnp.where(special != 0, special, bits), None

    c_bits_MN = lax.bitcast_convert_type(c_MN.astype(jnp.float32), jnp.int32)
    operands = (tuple(map(grouped, a)), tuple(map(grouped, b)))
    bits_MN, _ = lax.scan(body, c_bits_MN, operands)
    return lax.bitcast_convert_type(bits_MN, jnp.float32)


def _decode(x, kind: Kind):
    """Signed significand (an integer), exponent, is NaN, and signed infinity, of each element."""
    unsigned = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[kind.bits]
    raw = lax.bitcast_convert_type(x.astype(kind.dtype), unsigned).astype(jnp.uint32)
    negative = (raw >> (kind.bits - 1)) == 1
    raw = (raw & jnp.uint32(2 ** (kind.bits - 1) - 1)).astype(jnp.int32)
    field = raw >> (kind.fraction_bits + kind.dropped_bits)
    fraction = (raw >> kind.dropped_bits) & (2**kind.fraction_bits - 1)
    significand = jnp.where(field == 0, fraction, fraction | 2**kind.fraction_bits)
    exponent = jnp.maximum(field - kind.bias, kind.emin)
    if kind.fnuz:
        nan, inf = negative & (raw == 0), jnp.zeros_like(negative)
    else:
        last = field == 2**kind.exponent_bits - 1
        nan = last & ((raw & (2 ** (kind.fraction_bits + kind.dropped_bits) - 1)) != 0)
        inf = last & ~nan
    signed = jnp.where(negative, -significand, significand)
    return signed, exponent, nan, jnp.where(inf, jnp.where(negative, -1, 1), 0).astype(jnp.int32)


def _products(am_ML, ae_ML, bm_NL, be_NL):
    """Exact signed products and their exponents, not renormalised: MNL."""
    product_MNL = am_ML[:, None, :] * bm_NL[None, :, :]
    exponent_MNL = ae_ML[:, None, :] + be_NL[None, :, :]
    return product_MNL, jnp.where(product_MNL == 0, ABSENT, exponent_MNL)


def _aligned_sum(product_MNL, exponent_MNL, fraction: int):
    """Magnitudes truncated to 24 bits below the largest exponent, summed; and that exponent."""
    top_MN = jnp.max(exponent_MNL, axis=-1)
    drop = jnp.minimum(top_MN[..., None] - exponent_MNL, 31)
    magnitude = (jnp.abs(product_MNL) << (24 - fraction)) >> drop
    return jnp.sum(jnp.sign(product_MNL) * magnitude, axis=-1, dtype=jnp.int32), top_MN


def _plain_step(product, fraction: int, c_bits_MN):
    total_MN, top_MN = _aligned_sum(*product, fraction)
    return _accumulate(total_MN.astype(jnp.int64), top_MN, c_bits_MN)


def _paired_step(product, fraction: int, c_bits_MN):
    """Even and odd k each with a maximum of its own; a far smaller C is dropped (fp8)."""
    product_MNL, exponent_MNL = product
    halves = [
        _aligned_sum(product_MNL[..., i::2], exponent_MNL[..., i::2], fraction) for i in (0, 1)
    ]
    top_MN = jnp.maximum(halves[0][1], halves[1][1])
    total = sum(_floor_shift(s.astype(jnp.int64), e - top_MN) for s, e in halves)
    return _accumulate(total, top_MN, c_bits_MN, drops_small_c=True)


def _accumulate(total_MN, top_MN, c_bits_MN, drops_small_c: bool = False):
    """The sum (units of 2^(top-24)) plus C, floored to 31 bits and rounded to fp32: its bits."""
    field = (c_bits_MN >> FP32_FRACTION) & 0xFF
    fraction = c_bits_MN & (2**FP32_FRACTION - 1)
    significand = jnp.where(field == 0, fraction, fraction | 2**FP32_FRACTION).astype(jnp.int64)
    significand = jnp.where(c_bits_MN < 0, -significand, significand)
    c_exponent = jnp.maximum(field - FP32_BIAS, FP32_EMIN)
    exponent = jnp.maximum(top_MN, c_exponent)
    c_part = _floor_shift(significand, c_exponent - exponent + 1)
    if drops_small_c:
        c_part = jnp.where(c_exponent < exponent - 25, 0, c_part)
    value = _floor_shift(total_MN, top_MN - exponent + 8) + 256 * c_part
    return _round_to_fp32(value, exponent - 32, floor_bits=31)


def _round_to_fp32(value, unit_exponent, floor_bits: int | None = None):
    """Bits of value * 2^unit_exponent: floored to `floor_bits`, then to nearest even."""
    magnitude = jnp.abs(value)
    leading = (63 - lax.clz(magnitude)).astype(jnp.int32) + unit_exponent
    exponent = jnp.maximum(leading, FP32_EMIN)
    if floor_bits is not None:
        spare = jnp.maximum(exponent - floor_bits - unit_exponent, 0)
        value = _floor_shift(value, -spare) << spare.astype(jnp.int64)
        magnitude = jnp.abs(value)
    drop = (exponent - FP32_FRACTION - unit_exponent).astype(jnp.int64)
    down = jnp.clip(drop, 0, 62)
    kept = magnitude >> down
    rest = magnitude - (kept << down)
    halfway = jnp.where(down > 0, jnp.int64(1) << jnp.maximum(down - 1, 0), 2)
    up = (rest > halfway) | ((rest == halfway) & (kept & 1 == 1) & (down > 0))
    kept = jnp.where(drop < 0, magnitude << jnp.clip(-drop, 0, 62), kept + up.astype(jnp.int64))
    bits = ((exponent + FP32_BIAS - 1).astype(jnp.int64) << FP32_FRACTION) + kept
    bits = jnp.minimum(bits, FP32_INF)
    bits = jnp.where(value < 0, bits | 0x80000000, bits)
    bits = jnp.where(value == 0, 0, bits)
    return lax.bitcast_convert_type(bits.astype(jnp.uint32), jnp.int32)


def _floor_shift(value, left):
    """value * 2^left in int64, floored."""
    left = left.astype(jnp.int64)
    return jnp.where(left >= 0, value << jnp.clip(left, 0, 62), value >> jnp.clip(-left, 0, 63))


def _special(product, a, b, c_bits_MN, fraction: int, limited: bool):
    """Bits of the NaN or infinity that the operands force, or 0.

    `limited`: with eight exponent bits, a product of 2^128 or more counts as infinite.
    """
    (am, an, ai), (bm, bn, bi) = a, b
    product_MNL, exponent_MNL = product
    a_inf, b_inf = ai[:, None, :], bi[None, :, :]
    sign_a = jnp.where(ai != 0, ai, jnp.sign(am))[:, None, :]
    sign_b = jnp.where(bi != 0, bi, jnp.sign(bm))[None, :, :]
    infinite = (a_inf != 0) | (b_inf != 0)
    if limited:
        carry = (jnp.abs(product_MNL) >> (fraction + 1)) > 0
        infinite = infinite | (exponent_MNL + carry.astype(jnp.int32) >= 128)
    sign = sign_a * sign_b
    nan = jnp.any(an[:, None, :] | bn[None, :, :] | (infinite & (sign == 0)), axis=-1)
    c_magnitude = c_bits_MN & 0x7FFFFFFF
    c_inf = c_magnitude == FP32_INF
    plus = jnp.any(infinite & (sign > 0), axis=-1) | (c_inf & (c_bits_MN > 0))
    minus = jnp.any(infinite & (sign < 0), axis=-1) | (c_inf & (c_bits_MN < 0))
    nan = nan | (c_magnitude > FP32_INF) | (plus & minus)
    inf_bits = jnp.where(minus, jnp.int32(-(2**31) + FP32_INF), jnp.int32(FP32_INF))
    return jnp.where(nan, jnp.int32(0x7FC00000), jnp.where(plus | minus, inf_bits, 0))


@jax.jit
def _fma_chain(a_MK, b_NK, c_MN):
    """The f32 kind: fused multiply-adds, k ascending."""

    def body(c_MN, column):
        a_M, b_N = column
        return fma(a_M[:, None], b_N[None, :], c_MN), None

    return lax.scan(body, c_MN.astype(jnp.float32), (a_MK.T, b_NK.T))[0]


def fma(a, b, c):
    """Correctly rounded a*b + c in fp32, subnormals kept, from fp64.

    The product is exact in fp64; the sum is rounded to odd there, so that rounding it again to fp32
    is innocuous (Boldo and Melquiond 2008).
    """
    a, b, c = jnp.broadcast_arrays(a, b, c)
    product = _widen(a) * _widen(b)
    addend = _widen(c)
    total = product + addend
    shadow = total - product
    error = (product - (total - shadow)) + (addend - shadow)
    bits = lax.bitcast_convert_type(total, jnp.int64)
    away = (error > 0) == (total > 0)
    odd = jnp.where((error != 0) & (bits & 1 == 0), jnp.where(away, bits + 1, bits - 1), bits)
    magnitude = odd & jnp.int64(2**63 - 1)
    field = (magnitude >> 52).astype(jnp.int32)
    significand = (magnitude & (2**52 - 1)) | 2**52
    significand = jnp.where(field == 0, 0, jnp.where(odd < 0, -significand, significand))
    rounded = lax.bitcast_convert_type(_round_to_fp32(significand, field - 1075), jnp.float32)
    zero = jnp.where(total == 0, total.astype(jnp.float32), rounded)
    return jnp.where(jnp.isfinite(total), zero, total.astype(jnp.float32))


def _widen(x):
    """fp32 to fp64 with subnormals, which XLA's own conversion flushes."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    fraction = (bits & (2**FP32_FRACTION - 1)).astype(jnp.float64) * 2.0**-149
    subnormal = jnp.where(bits < 0, -fraction, fraction)
    return jnp.where((bits >> FP32_FRACTION) & 0xFF == 0, subnormal, x.astype(jnp.float64))
