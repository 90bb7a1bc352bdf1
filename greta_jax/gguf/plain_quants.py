"""Formats of 32 to 256 weights under one scale. Layouts: ggml-common.h; gguf-py quants.py."""

import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType as T

from greta_jax.gguf.blocks import bit_list, bits_to, block_format, f32, fields, half, hoisted

FP4_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""E2M1 values times two (OCP MX 1.0), the order of their four bits."""


def _signed(x, zero: int):
    return f32(x.astype(jnp.int8) - jnp.int8(zero))


@block_format(T.Q4_0)
def _q4_0(blocks):
    return hoisted(half(blocks[:, :2])) * _signed(fields(blocks[:, 2:], 16, 4), 8), None


@block_format(T.Q4_1)
def _q4_1(blocks):
    scaled = hoisted(half(blocks[:, :2])) * f32(fields(blocks[:, 4:], 16, 4))
    return scaled, jnp.broadcast_to(-hoisted(half(blocks[:, 2:4])), scaled.shape)


def _five_bits(high, low):
    return fields(low, 16, 4) | (bit_list(high) << 4)


@block_format(T.Q5_0)
def _q5_0(blocks):
    return hoisted(half(blocks[:, :2])) * _signed(
        _five_bits(blocks[:, 2:6], blocks[:, 6:]), 16
    ), None


@block_format(T.Q5_1)
def _q5_1(blocks):
    scaled = hoisted(half(blocks[:, :2])) * f32(_five_bits(blocks[:, 4:8], blocks[:, 8:]))
    return scaled, jnp.broadcast_to(-hoisted(half(blocks[:, 2:4])), scaled.shape)


@block_format(T.Q8_0)
def _q8_0(blocks):
    return hoisted(half(blocks[:, :2])) * f32(bits_to(jnp.int8, blocks[:, 2:])), None


@block_format(T.Q8_K)
def _q8_k(blocks):
    """fp32 scale, 256 quants, and sums of groups that dequantisation does not need."""
    scale = bits_to(jnp.float32, blocks[:, :4])[:, None]
    return scale * f32(bits_to(jnp.int8, blocks[:, 4:260])), None


@block_format(T.Q1_0)
def _q1_0(blocks):
    """One sign bit a weight: set is +d, clear is -d (gguf-py has no decoder to compare with)."""
    return hoisted(half(blocks[:, :2])) * (2 * f32(bit_list(blocks[:, 2:])) - 1), None


@block_format(T.TQ1_0)
def _tq1_0(blocks):
    """Five ternary digits a byte, as the fraction byte/256 in base 3."""
    parts = []
    for start, stop, group, digits in ((0, 32, 32, 5), (32, 48, 16, 5), (48, 52, 4, 4)):
        power = jnp.asarray([3**i for i in range(digits)], jnp.uint8)[None, :, None]
        chunk = blocks[:, start:stop].reshape(-1, 1, group) * power
        parts.append(chunk.reshape(blocks.shape[0], -1))
    digit = (jnp.concatenate(parts, axis=1).astype(jnp.uint16) * 3) >> 8
    return half(blocks[:, 52:54]) * _signed(digit, 1), None


@block_format(T.TQ2_0)
def _tq2_0(blocks):
    return half(blocks[:, 64:66]) * _signed(fields(blocks[:, :64], 32, 2), 1), None


def _mxfp4_table() -> np.ndarray:
    """fp32 bits of every (exponent byte, four bits): a table, since XLA flushes the subnormals."""
    with np.errstate(over="ignore"):
        scale = np.ldexp(np.float64(1), np.arange(256) - 128)[:, None]
        return (scale * FP4_DOUBLED[None]).astype(np.float32).view(np.uint32).ravel()


@block_format(T.MXFP4)
def _mxfp4(blocks):
    index = (blocks[:, :1].astype(jnp.int32) << 4) | fields(blocks[:, 1:], 16, 4).astype(jnp.int32)
    return bits_to(jnp.float32, jnp.asarray(_mxfp4_table())[index]), None


def _nvfp4_scales() -> np.ndarray:
    """Half of the unsigned E4M3 value (bias 7) of every byte; the top bit is ignored, 0x7F is 0."""
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    value = np.where(exponent == 0, mantissa * 2.0**-9, normal) * 0.5
    return np.where(byte == 0x7F, 0, value).astype(np.float32)


@block_format(T.NVFP4)
def _nvfp4(blocks):
    """Four scales, then four groups of sixteen E2M1 values."""
    scale = jnp.asarray(_nvfp4_scales())[blocks[:, :4].astype(jnp.int32)]
    quants = jnp.asarray(FP4_DOUBLED)[fields(blocks[:, 4:], 8, 4).astype(jnp.int32)]
    return scale[:, :, None] * f32(quants).reshape(-1, 4, 16), None
