"""One question to the bounds, and what several ops share in answering it."""

from dataclasses import dataclass

import numpy as np

from greta_jax.config import LayerConfig
from greta_jax.declared import OpPrecision
from greta_jax.errors import SiteError
from greta_jax.graph import Op
from greta_jax.model import Oracle
from greta_jax.sum_bounds import dot_error, total_error


@dataclass(frozen=True)
class Case:
    """One question: the oracle in fp64, the row of its table, the inputs and the result."""

    oracle: Oracle
    op: Op
    layer: int
    inputs: dict[str, np.ndarray]
    ref: np.ndarray
    precision: OpPrecision

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


def largest(x: np.ndarray) -> float:
    """Of the finite elements: what is not finite shows in the sums of those that read it alone."""
    return float(np.max(np.abs(x), where=np.isfinite(x), initial=0.0))


def projected(p: OpPrecision, x_TX, weight, signed, roundings: int) -> np.ndarray:
    """n products and sums, the weight's roundings, and three for factors taken out of the sum.

    `weight`: magnitudes that its dequantisation is relative to; `signed`: its values, for the
    partial sums of a declared order.
    """
    n = x_TX.shape[1]
    weight_EX = weight.reshape(-1, n)
    size_TE = np.abs(x_TX) @ weight_EX.T
    flushed = n * p.tiny * (1 + weight_EX.max() + largest(x_TX))
    if signed is None:
        overflows = size_TE * (1 + p.sum_error(n, roundings + 3)) > p.largest
        return np.where(overflows, np.inf, p.sum_error(n, roundings + 3) * size_TE + flushed)
    running_TE = dot_error(p, x_TX, signed.reshape(-1, n))
    own_TE = p.gamma(roundings + 3) * size_TE
    return (running_TE + own_TE * (1 + p.growth(n))) * (1 + p.gamma(3)) + flushed


def capped(p: OpPrecision, ref: np.ndarray, error: np.ndarray, cap: float | None) -> np.ndarray:
    """cap * tanh(x / cap): two roundings before tanh, its own, two after.

    tanh is no steeper than 1; and y * tanh'(y) <= tanh(y), so that a relative error of x, as those
    roundings are, makes no larger one of the result.
    """
    if cap is None:
        return error
    return error + (p.gamma(4) + p.exp_ulp * 2 * p.u) * (np.abs(ref) + error) + 2 * p.tiny


def softmax(
    p: OpPrecision,
    score: np.ndarray,
    prob: np.ndarray,
    score_error: np.ndarray | float,
    rescales: int = 0,
    live: int | None = None,
) -> np.ndarray:
    """Error of probabilities over the last axis, of which the first `live` terms are summed.

    An error d_i of the exponent of p_i multiplies it by exp(d_i), and the sum that divides it by at
    least sum p_j exp(-d_j). d_i holds the score's error, three roundings of score and maximum (the
    subtraction and a conversion to base 2), the exponential's error, and an online softmax's
    rescaling by exp(m_old - m_new), each of which may err as much again.
    """
    visible = np.isfinite(score)
    size = np.where(visible, np.abs(score), 0)
    largest = size.max(axis=-1, keepdims=True)
    exp_error = p.exp_ulp * 2 * p.u
    exponent = np.where(visible, score_error, 0) + 3 * p.u * (size + largest) + exp_error
    exponent = exponent + rescales * (exp_error + p.u + 6 * p.u * largest)
    lost = np.sum(prob * np.expm1(-exponent), axis=-1, keepdims=True)
    if p.order is None:
        total = p.gamma(score.shape[-1] + 3)
    else:
        total = total_error(p, prob[..., :live], 0.0)[..., None] + p.gamma(3)
    error = exponent - np.log1p(np.maximum(lost, -1)) + np.log1p(total)
    return prob * np.expm1(error) + visible * p.tiny
