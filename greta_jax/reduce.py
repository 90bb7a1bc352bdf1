"""Sums, and sums of products, in a chosen order and dtype: every product and sum is rounded once.

Called op by op and not under jit: XLA would contract a product and a sum into an fma, whatever
barrier stands between, and keep excess precision in bf16 and fp16.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from greta_jax import mfma

TERMS = 2**24
"""Products held at a time."""


def dot(a_MK, b_NK, order: str):
    """A B^T in the operands' dtype, k in ascending order within each part: MN."""
    kind, _, value = order.partition(":")
    if kind == "mfma":
        return _matrix_core(a_MK, b_NK, value)
    rows = max(TERMS // a_MK.size, 1)
    chunks = (b_NK[start : start + rows] for start in range(0, len(b_NK), rows))
    sums = [total(a_MK[:, None, :] * b_XK[None, :, :], order)[..., 0] for b_XK in chunks]
    return sums[0] if len(sums) == 1 else jnp.concatenate(sums, axis=1)


def total(terms, order: str):
    """The sum over the last axis, which stays with size 1."""
    kind, _, value = order.partition(":")
    if kind == "pairwise":
        return _pairwise(terms)[..., None]
    parts = int(value) if kind == "split" else 1
    length = -(-terms.shape[-1] // parts)
    terms = _padded(terms, length * parts)
    return _sequential(_sequential(terms.reshape(*terms.shape[:-1], parts, length)))[..., None]


@jax.jit
def _sequential(terms):
    """Sum over the last axis, one addition after the other. Only additions: nothing to contract."""
    first, rest = terms[..., 0], jnp.moveaxis(terms[..., 1:], -1, 0)
    return lax.scan(lambda total, term: (total + term, None), first, rest)[0]


def _pairwise(terms):
    while terms.shape[-1] > 1:
        terms = _padded(terms, terms.shape[-1] + terms.shape[-1] % 2)
        terms = terms[..., 0::2] + terms[..., 1::2]
    return terms[..., 0]


def _matrix_core(a_MK, b_NK, kind: str):
    dtype = "float32" if kind == "f32" else mfma.KINDS[kind].dtype
    group = 1 if kind == "f32" else mfma.KINDS[kind].group
    length = -(-a_MK.shape[-1] // group) * group
    a_MK, b_NK = (_padded(x, length).astype(dtype) for x in (a_MK, b_NK))
    zero_MN = jnp.zeros((a_MK.shape[0], b_NK.shape[0]), jnp.float32)
    return mfma.matmul(a_MK, b_NK, zero_MN, kind)


@partial(jax.jit, static_argnames=("length",))
def _padded(x, length: int):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])
