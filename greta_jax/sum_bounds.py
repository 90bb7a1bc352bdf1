"""Error bounds of sums in a declared order, from the partial sums that really occur.

Running error analysis (Higham, Accuracy and Stability, section 3.3): an addition adds u times its
own result, so data that cancel are bounded by what they cancel to and not by what they are made of.
The probabilistic form adds squares: roundings that are independent and of mean zero make a
martingale, which Azuma and Hoeffding bound by a multiple of the root of the sum of their squares.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from greta_jax.declared import OpPrecision
from greta_jax.precision import unit_roundoff

TERMS = 2**23
"""Products held at a time."""


class _Rates(NamedTuple):
    """Roundoff of an addition and of a product, loss of a flush, overflow; spread or -1."""

    add: float
    product: float
    tiny: float
    largest: float
    spread: float


def dot_error(p: OpPrecision, x_TX: np.ndarray, w_EX: np.ndarray) -> np.ndarray:
    """Bound of |computed - exact| of x W^T in p.order: TE. Factors are taken as exact."""
    rows = max(TERMS // x_TX.size, 1)
    rates = _rates(p, x_TX.shape[1], p.u + p.operand_error * (1 + p.u))
    x_TX = jnp.asarray(x_TX, jnp.float64)
    parts = []
    for start in range(0, len(w_EX), rows):
        w_WX = jnp.asarray(w_EX[start : start + rows], jnp.float64)
        parts.append(np.asarray(_dot_error(x_TX, w_WX, rates, p.order, p.failure is not None)))
    return np.concatenate(parts, axis=1)


def total_error(p: OpPrecision, terms: np.ndarray, term_error: float) -> np.ndarray:
    """The same of a sum over the last axis of terms with a relative error of their own."""
    rates = _rates(p, terms.shape[-1], term_error)
    terms = jnp.asarray(terms, jnp.float64)
    flushed = jnp.zeros_like(terms) + p.tiny
    return np.asarray(_sum_error(terms, flushed, rates, p.order, p.failure is not None))


def _rates(p: OpPrecision, terms: int, product: float) -> _Rates:
    spread = -1.0 if p.failure is None else p.spread(2 * terms)
    return _Rates(p.u, product, p.tiny, p.largest, spread)


@partial(jax.jit, static_argnames=("order", "likely"))
def _dot_error(x_TX, w_WX, rates, order, likely):
    x_T1X, w_1WX = x_TX[:, None, :], w_WX[None, :, :]
    # A flush may lose a factor or the product, whole.
    flushed = rates.tiny * (1 + jnp.abs(x_T1X) + jnp.abs(w_1WX))
    return _sum_error(x_T1X * w_1WX, flushed, rates, order, likely)


@partial(jax.jit, static_argnames=("order", "likely"))
def _sum_error(terms, flushed, rates, order, likely):
    errors = rates.product * jnp.abs(terms) + flushed
    errors = jnp.square(errors) if likely else errors
    kind, _, value = order.partition(":")
    fold = partial(_add, rates, likely)
    if kind == "pairwise":
        partial_sum = _tree(fold, terms, errors)
    else:
        parts = int(value) if kind == "split" else 1
        partial_sum = _chain(fold, *_chain(fold, *(_in_parts(x, parts) for x in (terms, errors))))
    error = rates.spread * jnp.sqrt(partial_sum[1]) if likely else partial_sum[1]
    # The partial sums were themselves computed in fp64.
    n = terms.shape[-1]
    return error + 2 * n * unit_roundoff("float64") * jnp.sum(jnp.abs(terms), axis=-1)


def _add(rates: _Rates, likely: bool, left, right):
    """One addition of (sum, error) pairs; with `likely` the errors are squares."""
    total, carried = left[0] + right[0], left[1] + right[1]
    if likely:
        size = jnp.abs(total) + rates.spread * jnp.sqrt(carried)
        error = carried + jnp.square(rates.add * size + rates.tiny)
    else:
        size = jnp.abs(total) + carried
        error = carried + rates.add * size + rates.tiny
    return total, jnp.where(size > rates.largest, jnp.inf, error)


def _chain(fold, terms, errors):
    """Over the last axis, one after the other."""
    first = terms[..., 0], errors[..., 0]
    rest = tuple(jnp.moveaxis(x[..., 1:], -1, 0) for x in (terms, errors))
    return lax.scan(lambda left, right: (fold(left, right), None), first, rest)[0]


def _tree(fold, terms, errors):
    """Over the last axis, neighbours first."""
    while terms.shape[-1] > 1:
        terms, errors = (_padded(x, x.shape[-1] + x.shape[-1] % 2) for x in (terms, errors))
        pairs = tuple((terms[..., i::2], errors[..., i::2]) for i in (0, 1))
        terms, errors = fold(*pairs)
    return terms[..., 0], errors[..., 0]


def _in_parts(x, parts: int):
    length = -(-x.shape[-1] // parts)
    return _padded(x, length * parts).reshape(*x.shape[:-1], parts, length)


def _padded(x, length: int):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])
