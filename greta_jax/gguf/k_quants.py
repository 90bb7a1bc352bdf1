"""The K formats: 256 weights in groups with scales of their own. Layouts: ggml-common.h."""

import jax.numpy as jnp
from gguf import GGMLQuantizationType as T

from greta_jax.gguf.blocks import bits_to, block_format, f32, fields, half, hoisted


@block_format(T.Q2_K)
def _q2_k(blocks):
    scales = blocks[:, :16]
    quants = f32(fields(blocks[:, 16:80], 32, 2)).reshape(-1, 16, 16)
    scaled = hoisted(half(blocks[:, 80:82]) * f32(scales & 15))[:, :, None] * quants
    offset = hoisted(half(blocks[:, 82:84]) * f32(scales >> 4))[:, :, None]
    return scaled, jnp.broadcast_to(offset, scaled.shape)


@block_format(T.Q3_K)
def _q3_k(blocks):
    """Two low bits, a third in a mask (set: nothing to subtract), sixteen 6-bit scales."""
    high = fields(blocks[:, :32], 32, 1)
    quants = fields(blocks[:, 32:96], 32, 2).astype(jnp.int8)
    quants = quants - ((high ^ 1) << 2).astype(jnp.int8)
    low_scales = fields(blocks[:, 96:104], 8, 4)
    high_scales = fields(blocks[:, 104:108], 4, 2)
    scales = f32((low_scales | (high_scales << 4)).astype(jnp.int8) - jnp.int8(32))
    scales = hoisted(half(blocks[:, 108:110]) * scales)
    return scales[:, :, None] * f32(quants).reshape(-1, 16, 16), None


def k_scales(packed):
    """The 12 bytes of Q4_K and Q5_K to eight 6-bit scales and eight 6-bit minima."""
    d, m, both = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = [d & 0x3F, (both & 0x0F) | ((d >> 2) & 0x30)]
    minima = [m & 0x3F, (both >> 4) | ((m >> 2) & 0x30)]
    return tuple(f32(jnp.concatenate(parts, axis=1)) for parts in (scales, minima))


def _scaled_and_offset(blocks, quants):
    scales, minima = k_scales(blocks[:, 4:16])
    scaled = hoisted(half(blocks[:, :2]) * scales)[:, :, None] * f32(quants).reshape(-1, 8, 32)
    offset = hoisted(half(blocks[:, 2:4]) * minima)[:, :, None]
    return scaled, jnp.broadcast_to(offset, scaled.shape)


@block_format(T.Q4_K)
def _q4_k(blocks):
    return _scaled_and_offset(blocks, fields(blocks[:, 16:144], 32, 4))


@block_format(T.Q5_K)
def _q5_k(blocks):
    high = fields(blocks[:, 16:48], 32, 1)
    return _scaled_and_offset(blocks, fields(blocks[:, 48:176], 32, 4) | (high << 4))


@block_format(T.Q6_K)
def _q6_k(blocks):
    quants = fields(blocks[:, :128], 64, 4) | (fields(blocks[:, 128:192], 32, 2) << 4)
    quants = f32(quants.astype(jnp.int8) - jnp.int8(32)).reshape(-1, 16, 16)
    scales = hoisted(half(blocks[:, 208:210]) * f32(bits_to(jnp.int8, blocks[:, 192:208])))
    return scales[:, :, None] * quants, None
