"""Error bounds of matrix-core groups, and of rounding what they multiply.

A step of CDNA3 (numerics.md, section 1; greta_jax.mfma) over a group of L products and the
accumulator c cuts each product at 2^(e_dot-24), where 2^e_dot is the group's largest, floors c at
2^(e-24) where that is above its own last place, that is where e is e_dot, floors the sum at
2^(e-32) and at 2^-31 of itself, and rounds it to nearest. Exponents follow the operands, which are
known but for their wobble. In any other grouping or order of k the sum keeps within n roundings of
sum|a||b| from n = 10 terms on: no group cuts more than 8 units of its largest product.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from greta_jax.declared import OpPrecision
from greta_jax.mfma import FP32_EMIN, KINDS, Kind
from greta_jax.precision import unit_roundoff

EXPONENT_MASK = 0x7FF << 52
LARGEST = float(np.finfo(np.float32).max)


def power_below(size):
    """The largest power of two that is at most `size` (0 and infinity stay), by its exponent."""
    bits = lax.bitcast_convert_type(size, jnp.int64) & EXPONENT_MASK
    return lax.bitcast_convert_type(bits, jnp.float64)


def operand(p: OpPrecision, x: np.ndarray) -> np.ndarray:
    """`x` as products take it: rounded to the declared operand, or as the order's core does."""
    if p.core == "xf32":
        bits = np.asarray(x, np.float32).view(np.int32) & ~(2 ** KINDS["xf32"].dropped_bits - 1)
        return bits.view(np.float32).astype(np.float64)
    dtype = p.operand_dtype
    return x if dtype is None else np.asarray(x).astype(jnp.dtype(dtype)).astype(np.float64)


def operand_error(p: OpPrecision, size: np.ndarray) -> np.ndarray:
    """How far an operand of at most that size may be moved by its rounding."""
    if p.core == "xf32":
        return 2.0 ** -KINDS["xf32"].fraction_bits * size
    dtype = p.operand_dtype
    if dtype is None:
        return np.zeros_like(size)
    least = float(np.asarray(jnp.finfo(dtype).smallest_subnormal, np.float64))
    moved = np.maximum(unit_roundoff(dtype) * size, least / 2)
    return np.where(size > float(jnp.finfo(dtype).max), np.inf, np.where(size > 0, moved, 0))


class _Acc(NamedTuple):
    """The accumulator: its value, wobble, what was cut and floored, what was rounded."""

    total: jax.Array
    wobble: jax.Array
    floored: jax.Array
    rounded: jax.Array


@partial(jax.jit, static_argnames=("kind", "scaled", "likely"))
def core_error(x, w, spread, kind, scaled, likely):
    """Bound of |computed - exact| of X W^T in groups of ascending k: TW.

    x and w: operands and their wobble, as in greta_jax.sum_bounds; only x may be `scaled`.
    """
    fmt, n = KINDS[kind], x[0].shape[1]
    value_x, wobble_x, top_x, low_x = _grouped(fmt, *x, scaled)
    value_w, wobble_w, top_w, low_w = _grouped(fmt, *w, False)
    terms = value_x[:, None] * value_w[None]
    size = (jnp.abs(value_x) + wobble_x)[:, None] * (jnp.abs(value_w) + wobble_w)[None]
    power = top_x[:, None] * top_w[None]
    top = jnp.max(power, axis=-1)
    # A product within 2^(24 - its digits) of the largest has no digit to be cut.
    spare = 2.0 ** (24 - 2 * fmt.fraction_bits)
    whole = (low_x[:, None] * low_w[None] * spare >= top[..., None]) | (size == 0)
    cut = jnp.sum(jnp.where(whole, 0, jnp.minimum(top[..., None] * 2.0**-24, size)), axis=-1)
    cut = jnp.where(jnp.max(size, axis=-1) > LARGEST, jnp.inf, cut)
    if fmt.fnuz:
        cut = cut + 2 * top * 2.0**-24  # Even and odd k are floored apart.
    wobble = jnp.sum(size - jnp.abs(terms), axis=-1)
    groups = (jnp.sum(terms, axis=-1), wobble, top, cut)
    start = _Acc(*[jnp.zeros(top.shape[:2])] * 4)
    in_turn = jax.tree.map(lambda x_TWC: jnp.moveaxis(x_TWC, -1, 0), groups)
    acc, _ = lax.scan(partial(_step, spread, likely), start, in_turn)
    rounded = spread * jnp.sqrt(acc.rounded) if likely else acc.rounded
    exact = 2 * n * unit_roundoff("float64") * jnp.sum(size, axis=(-2, -1))
    return acc.floored + rounded + exact


def _grouped(fmt: Kind, value, wobble, scaled: bool):
    """Values, wobble, and the powers of two that their exponents are between, in groups of k."""
    wobble = jnp.zeros_like(value) if wobble is None else wobble
    padding = [(0, 0), (0, -value.shape[1] % fmt.group)]
    shape = (len(value), -1, fmt.group)
    value, wobble = (jnp.pad(x, padding).reshape(shape) for x in (value, wobble))
    size = jnp.abs(value) + wobble
    top = jnp.where(size > 0, jnp.maximum(size if scaled else power_below(size), 2.0**fmt.emin), 0)
    low = power_below(jnp.maximum(jnp.abs(value) - wobble, 0))
    low = jnp.where(value == 0, 0, jnp.maximum(low, 2.0**fmt.emin))
    return value, wobble, top, jnp.zeros_like(low) if scaled else low


def _step(spread, likely, acc: _Acc, group):
    total, wobble, top, cut = group
    rounded = spread * jnp.sqrt(acc.rounded) if likely else acc.rounded
    before = jnp.abs(acc.total) + acc.wobble + acc.floored + rounded
    units = jnp.where(before > 0, top * 2.0**-24, 0) + jnp.maximum(top, before) * 2.0**-32
    after = jnp.abs(acc.total + total) + acc.wobble + wobble + acc.floored + cut + units + rounded
    place = jnp.maximum(power_below(after), 2.0**FP32_EMIN)
    floored = acc.floored + cut + units + place * 2.0**-31
    # The accumulator is a candidate, too. A group that may be lost whole is lost time and again.
    half, smaller = place * 2.0**-24, jnp.abs(total) + wobble + cut + units + place * 2.0**-31
    lost = jnp.logical_and(likely, smaller < half)
    half = jnp.minimum(half, smaller)
    floored = jnp.where(after > LARGEST, jnp.inf, floored + jnp.where(lost, half, 0))
    step = jnp.where(lost, 0, jnp.square(half) if likely else half)
    now = _Acc(acc.total + total, acc.wobble + wobble, floored, acc.rounded + step)
    # A group of zeros leaves the accumulator as it is.
    return jax.tree.map(lambda new, old: jnp.where(top > 0, new, old), now, acc), None
