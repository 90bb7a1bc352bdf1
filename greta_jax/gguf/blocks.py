"""The table of block formats, and the bit moves that they share.

A format is a function from blocks [n, bytes of a block] to (scaled, offset): weight = scaled -
offset, in the order of the row. Every product in `scaled` and `offset` has at most 24 significant
bits (formats in ROUNDED_PRODUCTS apart), hence is exact in fp32: only that last subtraction rounds,
and contracting it to an fma cannot change a bit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType
from jax import lax

Split = tuple[jax.Array, jax.Array | None]
FORMATS: dict[GGMLQuantizationType, Callable[[jax.Array], Split]] = {}
ROUNDED_PRODUCTS = (GGMLQuantizationType.Q8_K,)
"""Formats with a full fp32 scale, whose products round."""


def block_format(dtype: GGMLQuantizationType):
    """Registers the decoder of one format."""

    def register(function):
        FORMATS[dtype] = function
        return function

    return register


def bits_to(dtype, raw):
    """Little-endian bytes [..., k] reinterpreted as `dtype` [...]."""
    return lax.bitcast_convert_type(raw, dtype)


def words(dtype, raw):
    """Bytes [n, m] as [n, m / size] words."""
    size = np.dtype(dtype).itemsize
    return bits_to(dtype, raw.reshape(raw.shape[0], -1, size))


def half_bits(bits):
    """fp16 bit patterns (uint16) to fp32; subnormals, infinities and NaN payloads kept.

    In integers, because XLA's conversion quiets signalling NaNs.
    """
    bits = bits.astype(jnp.uint32)
    sign, exponent, mantissa = (bits >> 15) << 31, (bits >> 10) & 31, bits & 0x3FF
    normal = ((exponent + 112) << 23) | (mantissa << 13)
    special = jnp.uint32(0x7F800000) | (mantissa << 13)
    small = mantissa.astype(jnp.float32) * jnp.float32(2.0**-24)
    subnormal = bits_to(jnp.uint32, small)
    rest = jnp.where(exponent == 31, special, jnp.where(exponent == 0, subnormal, normal))
    return bits_to(jnp.float32, sign | rest)


def half(raw):
    """fp16 bytes [n, 2] to fp32 [n, 1]."""
    return half_bits(bits_to(jnp.uint16, raw))[:, None]


def fields(raw, group: int, bits: int):
    """Bytes [n, m] to values of `bits` bits [n, m * 8 / bits].

    Of every `group` bytes come first the lowest fields of all, then the next, and so on.
    """
    grouped = raw.reshape(raw.shape[0], -1, 1, group)
    shift = jnp.arange(0, 8, bits, dtype=jnp.uint8)[None, None, :, None]
    return ((grouped >> shift) & jnp.uint8(2**bits - 1)).reshape(raw.shape[0], -1)


def bit_list(raw):
    """Bytes [..., m] to their bits [..., 8m], lowest first."""
    shift = jnp.arange(8, dtype=jnp.uint8).reshape((1,) * raw.ndim + (8,))
    return ((raw[..., None] >> shift) & jnp.uint8(1)).reshape(*raw.shape[:-1], -1)


def shifted(x, shifts: range, width: int):
    """Fields of `width` bits of words [...] at each shift: [..., len(shifts)]."""
    shift = jnp.asarray(list(shifts), x.dtype).reshape((1,) * x.ndim + (-1,))
    return (x[..., None] >> shift) & jnp.asarray(2**width - 1, x.dtype)


def hoisted(scales):
    """Scales of groups, computed once each and not again for every weight of the fused loop."""
    return lax.optimization_barrier(scales)


def f32(x):
    """To fp32."""
    return x.astype(jnp.float32)


@block_format(GGMLQuantizationType.F32)
def _f32(blocks):
    return bits_to(jnp.float32, blocks)[:, None], None


@block_format(GGMLQuantizationType.F64)
def _f64(blocks):
    return bits_to(jnp.float64, blocks)[:, None], None


@block_format(GGMLQuantizationType.F16)
def _f16(blocks):
    return half(blocks), None


@block_format(GGMLQuantizationType.BF16)
def _bf16(blocks):
    return bits_to(jnp.float32, bits_to(jnp.uint16, blocks).astype(jnp.uint32) << 16)[:, None], None
