"""One question to the bounds, and what several ops share in answering it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from greta_jax.config import LayerConfig
from greta_jax.core_bounds import operand, operand_error
from greta_jax.declared import OpPrecision
from greta_jax.errors import SiteError
from greta_jax.graph import Op
from greta_jax.model import Oracle
from greta_jax.replay import Replays
from greta_jax.sum_bounds import dot_error, largest, least_total, total_error


@dataclass(frozen=True)
class Case:
    """One question: the oracle in fp64, the site, the row of its table and the inputs."""

    oracle: Oracle
    site: str
    op: Op
    layer: int
    inputs: dict[str, np.ndarray]
    precision: OpPrecision

    @cached_property
    def ref(self) -> np.ndarray:
        """The op in fp64. Raises SiteError as `replay`."""
        return self._replays(self.site, self.inputs)

    @cached_property
    def score_TNS(self) -> np.ndarray:
        """Attention's scores, of its queries and keys."""
        return self._replays("attn.scores", self._queries_and_keys)

    @cached_property
    def prob_TNS(self) -> np.ndarray:
        """Attention's weights."""
        return self._replays("attn.probs", self._queries_and_keys)

    @property
    def _queries_and_keys(self) -> dict[str, np.ndarray]:
        names = ("attn.q_rope", "kv.k", "positions")
        return {name: self.inputs[name] for name in names if name in self.inputs}

    @cached_property
    def _replays(self) -> Replays:
        return Replays(self.oracle, self.layer)

    @property
    def cfg(self) -> LayerConfig:
        """The layer's configuration."""
        return self.oracle.config.layer(max(self.layer, 0))

    def tensor(self, name: str) -> np.ndarray:
        """An input in fp64. Raises SiteError if it was not given."""
        if name not in self.inputs:
            raise SiteError(
                f"the bound of {self.op.site} needs the input {name}",
                remedy=f"give {', '.join(self.op.inputs)}",
            )
        return np.asarray(self.inputs[name], np.float64)

    def weight(self, name: str) -> np.ndarray:
        """A weight in fp64."""
        return np.asarray(self.oracle.weights.load(name, self.layer), np.float64)

    def signed(self, name: str) -> np.ndarray | None:
        """A weight where more than its magnitude matters: to partial sums, or to an operand."""
        p = self.precision
        return None if p.order is None and p.operand is None else self.weight(name)


def projected(p: OpPrecision, x_TX, magnitude, signed, roundings: int) -> np.ndarray:
    """Products with a weight that is dequantised with `roundings` relative to `magnitude`.

    Both factors are then rounded to the operand. x is given, so that what its rounding does to the
    sum is known, sign and all; so is the weight's where dequantisation does not round. Three
    roundings more are for factors taken out of the sum.
    """
    n = x_TX.shape[1]
    magnitude_EX = magnitude.reshape(-1, n)
    if signed is None:
        size_TE = np.abs(x_TX) @ magnitude_EX.T
        error_TE = p.sum_error(n, roundings + 3) * size_TE
        error_TE = error_TE + n * p.tiny * (1 + magnitude_EX.max() + largest(x_TX))
    else:
        w_EX, taken_TX = signed.reshape(-1, n), operand(p, x_TX)
        taken_EX, wobble_EX = operand(p, w_EX), np.zeros_like(w_EX)
        if roundings:
            taken_EX, wobble_EX = w_EX, p.gamma(roundings) * magnitude_EX
            wobble_EX = wobble_EX + operand_error(p, np.abs(w_EX) + wobble_EX)
        size_TE = np.abs(taken_TX) @ (np.abs(taken_EX) + wobble_EX).T
        error_TE = dot_error(p, (taken_TX, None), (taken_EX, wobble_EX if roundings else None))
        error_TE = error_TE + np.abs(taken_TX @ taken_EX.T - x_TX @ w_EX.T)
        error_TE = error_TE + np.abs(taken_TX) @ wobble_EX.T
        error_TE = error_TE * (1 + p.gamma(3)) + p.gamma(3) * size_TE
    return np.where(size_TE + error_TE > p.largest, np.inf, error_TE)


def capped(p: OpPrecision, ref: np.ndarray, error: np.ndarray, cap: float | None) -> np.ndarray:
    """cap * tanh(x / cap): two roundings before tanh, its own, two after.

    tanh is no steeper than 1; and y * tanh'(y) <= tanh(y), so that a relative error of x, as those
    roundings are, makes no larger one of the result.
    """
    if cap is None:
        return error
    return error + (p.gamma(4) + p.exp_ulp * 2 * p.u) * (np.abs(ref) + error) + 2 * p.tiny


@dataclass(frozen=True)
class Softmax:
    """What rounding may do to probabilities p_i = w_i / sum w_j over the last axis.

    A weight is computed as w_i exp(d_i) with |d_i| <= exponent, and their sum as sum w_j times what
    lies between `least` and `most`. Of the computed weights over their computed sum, the sum lies
    between `shrunk` and `grown`.
    """

    prob: np.ndarray
    exponent: np.ndarray
    least: np.ndarray
    most: np.ndarray
    shrunk: np.ndarray
    grown: np.ndarray

    def error(self, p: OpPrecision, visible: np.ndarray) -> np.ndarray:
        """Of the probabilities themselves: the division, of two roundings, and one to spare."""
        above = np.exp(self.exponent) / self.least * (1 + p.gamma(3)) - 1
        below = 1 - np.exp(-self.exponent) / self.most * (1 - min(p.gamma(3), 1))
        return self.prob * np.maximum(above, below) + 2 * visible * p.tiny


def softmax(
    p: OpPrecision,
    score: np.ndarray,
    prob: np.ndarray,
    score_error: np.ndarray | float,
    rescales: int = 0,
    live: int | None = None,
) -> Softmax:
    """Of probabilities over the last axis, of which the first `live` terms are summed.

    An exponent holds the score's error; the roundings of score and maximum, of their difference and
    of its conversion to base 2; the exponential's error; and an online softmax's rescaling by
    exp(m_old - m_new). The computed maximum is common to a row and cancels. What is summed may be
    the weights before or after they are rounded to the operand.
    """
    visible = np.isfinite(score)
    error = np.where(visible, score_error, 0)
    size = np.where(visible, np.abs(score), 0) + error
    largest, top = size.max(axis=-1, keepdims=True), score.max(axis=-1, keepdims=True)
    gap = np.where(visible, top - score, 0) + error + error.max(axis=-1, keepdims=True)
    exp_error = -np.log1p(-min(p.exp_ulp * 2 * p.u, 1))
    exponent = error + p.u * (2 * gap + size + largest) + exp_error
    exponent = exponent + rescales * (exp_error + 6 * p.u * largest)
    low, high = prob * np.exp(-exponent), prob * np.exp(exponent)
    low, high = np.maximum(low - operand_error(p, high), 0), high + operand_error(p, high)
    low_sum, high_sum = (x.sum(axis=-1, keepdims=True) for x in (low, high))
    terms = prob[..., :live], (high - prob)[..., :live]
    lost = total_error(p, *terms, rounded=False, scaled=True)[..., None]
    lost = lost + p.growth(rescales) * (high_sum + lost)
    least = least_total(p, low[..., :live])[..., None] / (1 + p.u) ** rescales
    least, most = np.maximum(least, low_sum - lost), high_sum + lost
    with_lost = np.where(lost < low_sum, low_sum / np.maximum(low_sum - lost, 0), np.inf)
    grown = np.minimum(with_lost, high_sum / least)
    return Softmax(prob, exponent, least, most, low_sum / (low_sum + lost), grown)
