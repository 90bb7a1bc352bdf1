"""GGUF blocks to fp32, bit-identical to gguf.dequantize, as one small function a format.

Each function maps blocks [n, bytes of a block] to (scaled, offset) with weight = scaled - offset.
Every product in `scaled` and `offset` has at most 24 significant bits, hence is exact in fp32: only
that last subtraction rounds, and contracting it to an fma cannot change a bit.
Source of the layouts: ggml-quants.c; gguf-py quants.py.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from jax import lax

from greta_jax.errors import TensorError

Blocks = jax.Array
Split = tuple[jax.Array, jax.Array | None]
FORMATS: dict[GGMLQuantizationType, Callable[[Blocks], Split]] = {}


def _format(dtype: GGMLQuantizationType):
    def register(function):
        FORMATS[dtype] = function
        return function

    return register


def dequantize(raw: np.ndarray, dtype: GGMLQuantizationType, store: str = "float32") -> jax.Array:
    """The weights of raw rows [rows, bytes of a row], rounded to fp32 and then cast to `store`.

    Raises:
      TensorError: the format has no weights (I8 ... I64, Q8_1) or is unknown here.
    """
    check_format(dtype)
    return _dequantize(jnp.asarray(raw), dtype, store)


def magnitude(raw: np.ndarray, dtype: GGMLQuantizationType) -> jax.Array:
    """|scaled| + |offset| in fp64: what the roundings of any evaluation order are relative to."""
    check_format(dtype)
    return _magnitude(jnp.asarray(raw), dtype)


def rounds(dtype: GGMLQuantizationType) -> bool:
    """True if dequantising this format rounds at all (it has an offset to subtract)."""
    check_format(dtype)
    _, block_bytes = GGML_QUANT_SIZES[dtype]
    split = jax.eval_shape(FORMATS[dtype], jax.ShapeDtypeStruct((1, block_bytes), jnp.uint8))
    return split[1] is not None


def check_format(dtype: GGMLQuantizationType) -> None:
    """Raises TensorError for a dtype that holds no weights this package can decode."""
    if dtype not in FORMATS:
        names = ", ".join(sorted(known.name for known in FORMATS))
        raise TensorError(f"dtype {dtype.name} cannot be dequantised", remedy=f"known are {names}")


@partial(jax.jit, static_argnames=("dtype", "store"))
def _dequantize(raw, dtype, store):
    scaled, offset = FORMATS[dtype](_as_blocks(raw, dtype))
    weights = scaled if offset is None else scaled - offset
    return weights.reshape(raw.shape[0], -1).astype(store)


@partial(jax.jit, static_argnames=("dtype",))
def _magnitude(raw, dtype):
    scaled, offset = FORMATS[dtype](_as_blocks(raw, dtype))
    total = jnp.abs(scaled).astype(jnp.float64)
    if offset is not None:
        total = total + jnp.abs(offset).astype(jnp.float64)
    return total.reshape(raw.shape[0], -1)


def _as_blocks(raw, dtype):
    return raw.reshape(-1, GGML_QUANT_SIZES[dtype][1])


def bits_to(dtype, raw):
    """Little-endian bytes [..., k] reinterpreted as `dtype` [...]."""
    return lax.bitcast_convert_type(raw, dtype)


def half(raw):
    """fp16 bytes [n, 2] to fp32 [n, 1], subnormals, infinities and NaN payloads kept.

    In integers, because XLA's conversion quiets signalling NaNs.
    """
    bits = bits_to(jnp.uint16, raw).astype(jnp.uint32)
    sign, exponent, mantissa = (bits >> 15) << 31, (bits >> 10) & 31, bits & 0x3FF
    normal = ((exponent + 112) << 23) | (mantissa << 13)
    special = jnp.uint32(0x7F800000) | (mantissa << 13)
    small = mantissa.astype(jnp.float32) * jnp.float32(2.0**-24)
    subnormal = bits_to(jnp.uint32, small)
    magnitude_bits = jnp.where(exponent == 31, special, jnp.where(exponent == 0, subnormal, normal))
    return bits_to(jnp.float32, sign | magnitude_bits)[:, None]


def nibbles(raw, group: int):
    """Bytes [n, m] to 4-bit values [n, 2m]: of each `group` bytes the low halves, then the high."""
    grouped = raw.reshape(raw.shape[0], -1, 1, group)
    shift = jnp.array([0, 4], jnp.uint8)[None, None, :, None]
    return ((grouped >> shift) & jnp.uint8(15)).reshape(raw.shape[0], -1)


@_format(GGMLQuantizationType.F32)
def _f32(blocks):
    return bits_to(jnp.float32, blocks)[:, None], None


@_format(GGMLQuantizationType.F16)
def _f16(blocks):
    return half(blocks), None


@_format(GGMLQuantizationType.BF16)
def _bf16(blocks):
    bits = bits_to(jnp.uint16, blocks).astype(jnp.uint32) << 16
    return bits_to(jnp.float32, bits)[:, None], None


@_format(GGMLQuantizationType.Q8_0)
def _q8_0(blocks):
    return half(blocks[:, :2]) * bits_to(jnp.int8, blocks[:, 2:]).astype(jnp.float32), None


def k_scales(packed):
    """The 12 bytes of Q4_K and Q5_K to eight 6-bit scales and eight 6-bit minima."""
    d, m, both = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = [d & 0x3F, (both & 0x0F) | ((d >> 2) & 0x30)]
    minima = [m & 0x3F, (both >> 4) | ((m >> 2) & 0x30)]
    return tuple(jnp.concatenate(p, axis=1).astype(jnp.float32) for p in (scales, minima))


@_format(GGMLQuantizationType.Q4_K)
def _q4_k(blocks):
    scales, minima = k_scales(blocks[:, 4:16])
    quants = nibbles(blocks[:, 16:], 32).reshape(-1, 8, 32).astype(jnp.float32)
    scaled = (half(blocks[:, :2]) * scales)[:, :, None] * quants
    offset = (half(blocks[:, 2:4]) * minima)[:, :, None]
    return scaled, jnp.broadcast_to(offset, scaled.shape)


@_format(GGMLQuantizationType.Q6_K)
def _q6_k(blocks):
    low = nibbles(blocks[:, :128], 64)
    shift = jnp.array([0, 2, 4, 6], jnp.uint8)[None, None, :, None]
    high = ((blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shift) & jnp.uint8(3)).reshape(-1, 256)
    quants = (low | (high << 4)).astype(jnp.int8) - jnp.int8(32)
    scales = half(blocks[:, 208:210]) * bits_to(jnp.int8, blocks[:, 192:208]).astype(jnp.float32)
    return scales[:, :, None] * quants.reshape(-1, 16, 16).astype(jnp.float32), None
