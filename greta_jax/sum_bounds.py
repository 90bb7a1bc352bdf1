"""Error bounds of sums and dot products: in any order, or from the partial sums that really occur.

Running error analysis (Higham, Accuracy and Stability, section 3.3): an addition errs by at most
half a unit in the last place of its own result, so data that cancel are bounded by what they cancel
to. Rounded to nearest, it also errs by no more than either term, the other being one candidate
(Jeannerod and Rump 2013): sums that outgrow n*u = 1 keep a bound. The probabilistic form adds
squares: roundings that are independent and of mean zero make a martingale, which Azuma and
Hoeffding bound by a multiple of the root of the sum of their squares.

A `wobble` says how far the computed terms may be from those given: it enlarges partial sums, and
what it does to the result is the caller's to add. `scaled` terms are known but for a common factor:
their last place is then anywhere, and a rounding is u times its result.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from greta_jax.core_bounds import core_error, power_below
from greta_jax.declared import OpPrecision
from greta_jax.precision import unit_roundoff

TERMS = 2**22
"""Products held at a time."""


Factor = tuple[np.ndarray, np.ndarray | None]
"""Rows of a matrix, and their wobble (None: none)."""


class _Rates(NamedTuple):
    """Roundoff; loss of a flush; overflow; root mean squares that a likely sum of errors spans."""

    u: float
    tiny: float
    largest: float
    spread: float


class _Sum(NamedTuple):
    """Partial sums; what they certainly lost; squares of what they likely lost; wobble.

    The last two are None where there are none.
    """

    total: jax.Array
    error: jax.Array
    squares: jax.Array | None
    wobble: jax.Array | None


def dot_error(p: OpPrecision, x: Factor, w: Factor, scaled: bool = False) -> np.ndarray:
    """Bound of |computed - exact| of X W^T: TE. Its factors are the operands of the products."""
    (x_TX, _), (w_EX, _) = x, w
    n = x_TX.shape[1]
    order = _running_order(p)
    if order is None and p.core is None:
        error_TE = p.sum_error(n) * (_size(*x) @ _size(*w).T)
        flushed = n * p.tiny * (1 + largest(x_TX) + largest(w_EX)) * (1 + p.sum_error(n))
        return error_TE + flushed
    rates, likely = _rates(p, n), p.failure is not None
    if p.core is not None:
        evaluate = partial(core_error, spread=rates.spread, kind=p.core)
    else:
        evaluate = partial(_dot_error, rates=rates, order=order)
    rows = max(TERMS // x_TX.size, 1)
    x_jax = _as_jax(x)
    parts = [
        np.asarray(evaluate(x_jax, _as_jax(w, start, start + rows), scaled=scaled, likely=likely))
        for start in range(0, len(w_EX), rows)
    ]
    found_TE = np.concatenate(parts, axis=1)
    if p.core is not None:
        # A core keeps subnormals, but what rounds an operand for it may flush.
        found_TE = found_TE + n * p.tiny * (1 + largest(x_TX) + largest(w_EX))
    if not likely:
        return found_TE
    certain = replace(p, failure=None)
    return np.minimum(found_TE, dot_error(certain, x, w, scaled))


def total_error(p: OpPrecision, terms, wobble=None, rounded: bool = True, scaled: bool = False):
    """The same of a sum over the last axis; `rounded` terms were themselves rounded once."""
    n = terms.shape[-1]
    order = _running_order(p)
    if order is None:
        error = p.sum_error(n, int(rounded) - 1)
        return error * (_size(terms, wobble).sum(axis=-1) + n * p.tiny) + n * p.tiny
    if p.failure is not None:
        certain = total_error(replace(p, failure=None), terms, wobble, rounded, scaled)
    terms = jnp.asarray(terms, jnp.float64)
    wobble = None if wobble is None else jnp.asarray(wobble, jnp.float64)
    how = (_rates(p, n), order, rounded, scaled, p.failure is not None)
    found = np.asarray(_total_error(terms, wobble, *how))
    return found if p.failure is None else np.minimum(found, certain)


def largest(x: np.ndarray) -> float:
    """Of the finite elements: what is not finite shows in the sums of those that read it alone."""
    return float(np.max(np.abs(x), where=np.isfinite(x), initial=0.0))


def least_total(p: OpPrecision, terms: np.ndarray) -> np.ndarray:
    """Below it no computed sum of these positive terms, or of larger ones, can lie.

    A rounded sum of two is no less than either, and no less than (1-u) times theirs.
    """
    n, order = terms.shape[-1], _running_order(p)
    if order is None:
        least = terms.sum(axis=-1) * (1 - p.sum_error(n, -1))
    else:
        least = np.asarray(_least_total(jnp.asarray(terms, jnp.float64), p.u, order))
    return np.maximum(terms.max(axis=-1), least - n * p.tiny)


@partial(jax.jit, static_argnames=("order",))
def _least_total(terms, u, order):
    def fold(left, right):
        return jnp.maximum(jnp.maximum(left, right), (left + right) * (1 - u))

    return _in_order(order, fold, terms)


def _size(value, wobble):
    return abs(value) if wobble is None else abs(value) + wobble


def _as_jax(factor: Factor, *rows: int) -> tuple:
    rows = slice(*rows) if rows else slice(None)
    return tuple(None if x is None else jnp.asarray(x[rows], jnp.float64) for x in factor)


def _running_order(p: OpPrecision) -> str | None:
    """The order whose partial sums a scan can follow; of matrix cores only f32 is such a chain."""
    if p.order == "mfma:f32":
        return "sequential"
    return None if p.core is not None else p.order


def _rates(p: OpPrecision, terms: int) -> _Rates:
    spread = -1.0 if p.failure is None else p.spread(2 * terms)
    return _Rates(p.u, p.tiny, p.largest, spread)


@partial(jax.jit, static_argnames=("order", "scaled", "likely"))
def _dot_error(x, w, rates, order, scaled, likely):
    x_T1X, w_1WX = x[0][:, None], w[0][None]
    size_x, size_w = _size(*x)[:, None], _size(*w)[None]
    terms, size = x_T1X * w_1WX, size_x * size_w
    exact = x[1] is None and w[1] is None
    # A flush may lose a factor or the product, whole.
    error = _rounding(rates, size, scaled) + rates.tiny * (1 + size_x + size_w)
    wobble = None if exact else size - jnp.abs(terms)
    return _sum_error(_terms(terms, error, wobble, likely), rates, order, scaled)


@partial(jax.jit, static_argnames=("order", "rounded", "scaled", "likely"))
def _total_error(terms, wobble, rates, order, rounded, scaled, likely):
    size = _size(terms, wobble)
    error = (_rounding(rates, size, scaled) if rounded else 0 * size) + rates.tiny
    return _sum_error(_terms(terms, error, wobble, likely), rates, order, scaled)


def _sum_error(terms: _Sum, rates, order, scaled):
    n, size = terms.total.shape[-1], jnp.sum(jnp.abs(terms.total), axis=-1)
    found = _in_order(order, partial(_add, rates, scaled), terms)
    # The partial sums were themselves computed in fp64.
    return _lost(rates, found) + 2 * n * unit_roundoff("float64") * size


def _in_order(order: str, fold, terms):
    """`fold` over the last axis of every array."""
    kind, _, value = order.partition(":")
    if kind == "pairwise":
        return _tree(fold, terms)
    parts = int(value) if kind == "split" else 1
    return _chain(fold, _chain(fold, _map(partial(_in_parts, parts), terms)))


def _rounding(rates: _Rates, size, scaled: bool):
    return rates.u * (size if scaled else power_below(size))


def _terms(total, error, wobble, likely: bool) -> _Sum:
    if likely:
        return _Sum(total, jnp.zeros_like(total), jnp.square(error), wobble)
    return _Sum(total, error, None, wobble)


def _lost(rates: _Rates, part: _Sum):
    if part.squares is None:
        return part.error
    return part.error + rates.spread * jnp.sqrt(part.squares)


def _add(rates: _Rates, scaled: bool, left: _Sum, right: _Sum) -> _Sum:
    """One addition. A term below half a place may be lost whole, time and again: no coincidence."""

    def size(part: _Sum):
        return _size(part.total, part.wobble) + _lost(rates, part)

    both, smaller = _map(jnp.add, left, right), jnp.minimum(size(left), size(right))
    half = _rounding(rates, size(both), scaled)
    rounding = jnp.minimum(half, smaller) + rates.tiny
    overflows = size(both) > rates.largest
    if both.squares is None:
        return both._replace(error=jnp.where(overflows, jnp.inf, both.error + rounding))
    certain = overflows | (smaller < half)
    return both._replace(
        error=both.error + jnp.where(certain, jnp.where(overflows, jnp.inf, rounding), 0),
        squares=both.squares + jnp.where(certain, 0, jnp.square(rounding)),
    )


_map = jax.tree.map


def _chain(fold, terms):
    """Over the last axis, one after the other."""
    first = _map(lambda x: x[..., 0], terms)
    rest = _map(lambda x: jnp.moveaxis(x[..., 1:], -1, 0), terms)
    return lax.scan(lambda left, right: (fold(left, right), None), first, rest)[0]


def _tree(fold, terms):
    """Over the last axis, neighbours first."""
    while (n := jax.tree.leaves(terms)[0].shape[-1]) > 1:
        terms = _map(lambda x, length=n + n % 2: _padded(x, length), terms)
        terms = fold(*(_map(lambda x, i=i: x[..., i::2], terms) for i in (0, 1)))
    return _map(lambda x: x[..., 0], terms)


def _in_parts(parts: int, x):
    length = -(-x.shape[-1] // parts)
    return _padded(x, length * parts).reshape(*x.shape[:-1], parts, length)


def _padded(x, length: int):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])
