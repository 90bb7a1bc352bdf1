"""Elementwise bounds on what rounding may do to one op, for any order of summation.

bound() is in fp64 and rigorous to first order in fp64's own roundoff: an evaluation in the declared
precision on the same inputs that exceeds it has done something other than round. Source of the dot
product's n*u/(1-n*u)*sum|a||b|: Higham, Accuracy and Stability, section 3.1. Nothing here is a
tolerance: every factor counts roundings.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp
import numpy as np

from greta_jax.errors import PrecisionError, SiteError
from greta_jax.graph import LAYER_OP
from greta_jax.model import Oracle
from greta_jax.precision import Policy, require_x64, smallest_normal, unit_roundoff
from greta_jax.replay import replay

EXP_ULP = 4
"""Default error of an exponential in ulp: a software exp2 keeps well under it."""


@dataclass(frozen=True)
class OpPrecision:
    """What an engine declares about one op.

    store, accumulate: dtypes of the result and of the arithmetic.
    chain: longest chain of additions that a term of a sum goes through (None: the sum's length,
    that is, any order). operand: dtype that the factors of products are rounded to first (None:
    used as given).
    exp_ulp: error of its exponential. rescales: how often an online softmax may rescale its partial
    sums (None: at every slot; 0: the maximum is known before the sum starts).
    angle: dtype of the angles of a rotation, their frequencies made as powers or as repeated
    products (None: fp64, and only the table of cosines and sines is rounded).
    failure: None for the certain bound; else the probability, an element, that roundings that are
    independent exceed it (Higham and Mary 2019, theorem 2.4: sqrt(n) for n).
    """

    store: str = "float32"
    accumulate: str = "float32"
    chain: int | None = None
    operand: str | None = None
    exp_ulp: float = EXP_ULP
    rescales: int | None = None
    angle: str | None = None
    failure: float | None = None

    @classmethod
    def of(cls, declared: "OpPrecision | dict[str, Any]") -> "OpPrecision":
        """From a mapping of plain strings. Raises PrecisionError for an unknown key or dtype."""
        if isinstance(declared, cls):
            return declared
        unknown = set(declared) - {f.name for f in fields(cls)}
        if unknown:
            raise PrecisionError(
                f"unknown precision keys {sorted(unknown)}",
                remedy=f"known are {', '.join(f.name for f in fields(cls))}",
            )
        return cls(**declared)

    @property
    def u(self) -> float:
        """Unit roundoff of the arithmetic, plus that of the fp64 reference itself."""
        return unit_roundoff(self.accumulate) + unit_roundoff("float64")

    @property
    def operand_error(self) -> float:
        """Relative error of a product whose two factors were rounded first."""
        if self.operand is None:
            return 0.0
        return math.expm1(2 * math.log1p(unit_roundoff(self.operand)))

    @property
    def tiny(self) -> float:
        """What one operation may lose to flushing a subnormal."""
        return smallest_normal(self.accumulate)

    def gamma(self, roundings: float) -> float:
        """n*u/(1-n*u): relative error after that many roundings; inf where the theory ends."""
        nu = roundings * self.u
        return nu / (1 - nu) if nu < 1 else math.inf

    def sum_error(self, terms: int, extra: int = 0) -> float:
        """Relative error, on sum|a||b|, of a dot product with `extra` roundings beside its own."""
        chain = terms if self.chain is None else min(terms, self.chain)
        return (1 + self._chain_error(chain + extra)) * (1 + self.operand_error) - 1

    def _chain_error(self, roundings: int) -> float:
        if self.failure is None:
            return self.gamma(roundings)
        spread = math.sqrt(2 * math.log(2 * roundings / self.failure)) / (1 - self.u)
        exponent = spread * math.sqrt(roundings) * self.u + roundings * self.u**2 / (1 - self.u)
        return min(math.expm1(exponent), self.gamma(roundings))

    def stored(self, ref: np.ndarray, error: np.ndarray) -> np.ndarray:
        """The error after the result is rounded to its storage dtype."""
        info = jnp.finfo(self.store)
        subnormal = float(np.asarray(info.smallest_subnormal, np.float64))
        rounding = unit_roundoff(self.store) + unit_roundoff("float64")
        return error + rounding * (np.abs(ref) + error) + subnormal


@dataclass(frozen=True)
class _Case:
    """One question: the op, the inputs in fp64, and the reference result."""

    oracle: Oracle
    site: str
    layer: int
    inputs: dict[str, np.ndarray]
    ref: np.ndarray
    precision: OpPrecision

    def tensor(self, name: str) -> np.ndarray:
        if name not in self.inputs:
            raise SiteError(f"the bound of {self.site} needs the input {name}")
        return np.asarray(self.inputs[name], np.float64)


def bound(oracle: Oracle, site: str, layer: int, inputs: dict, precision) -> np.ndarray:
    """Largest possible |got - op64(inputs)|, elementwise, in the shape that `replay` returns.

    `inputs` are INPUTS[site] of greta_jax.graph, taken as exact; `precision` is an OpPrecision or
    a mapping with its keys, such as {"store": "float16", "accumulate": "float32"}. Where roundings
    outgrow the theory (n*u >= 1) the bound is inf.

    Raises:
      PrecisionError: jax x64 is off, or the declaration is unknown. SiteError: as `replay`, or the
      architecture is not llama.
    """
    require_x64("bounds")
    if oracle.config.architecture != "llama":
        raise SiteError(
            f"no bounds are derived for {oracle.config.architecture}",
            remedy="bounds cover the ops of the llama architecture",
        )
    declared = OpPrecision.of(precision)
    ref = replay(oracle.with_policy(Policy.fp64()), site, layer, inputs)
    case = _Case(oracle, site, layer, inputs, ref, declared)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        error = BOUNDS[site](case)
        finite_ref = np.where(np.isfinite(ref), ref, 0)
        return declared.stored(finite_ref, np.where(np.isfinite(ref), error, 0))


def _embed(case: _Case) -> np.ndarray:
    ids_T = np.asarray(case.inputs["token_ids"])
    magnitude_TD, roundings = case.oracle.weights.embed_magnitudes(ids_T)
    return case.precision.gamma(roundings) * np.asarray(magnitude_TD)


def _copy(case: _Case) -> np.ndarray:
    return np.zeros_like(case.ref)


def _rms_norm(case: _Case) -> np.ndarray:
    """Mean of squares: n+3 roundings, halved by the root; root, division, scale: 5 more."""
    p, n = case.precision, case.ref.shape[-1]
    root = 1 / math.sqrt(1 - min(p.gamma(n + 3), 1)) - 1 if p.gamma(n + 3) < 1 else math.inf
    relative = (1 + root) * (1 + p.gamma(5)) - 1
    return relative * np.abs(case.ref) + p.tiny


def _projection(case: _Case) -> np.ndarray:
    """x times a weight, dequantised on the device."""
    op = LAYER_OP[case.site]
    weight, roundings = case.oracle.weights.magnitude(op.weights[0], case.layer)
    x = case.tensor(op.inputs[0])
    error_TE = _dot(case.precision, x.reshape(len(x), -1), np.asarray(weight), roundings)
    return error_TE.reshape(case.ref.shape)


def _dot(p: OpPrecision, x_TD, weight, roundings: int) -> np.ndarray:
    """n products and sums, the weight's roundings, and three for factors taken out of the sum."""
    n = x_TD.shape[1]
    size_TE = np.abs(x_TD) @ weight.reshape(-1, n).T
    return p.sum_error(n, roundings + 3) * size_TE + n * p.tiny * (1 + weight.max())


def _logits(case: _Case) -> np.ndarray:
    x_TD = case.tensor("final.norm")
    chunks = case.oracle.weights.unembed_magnitudes()
    parts = [_dot(case.precision, x_TD, np.asarray(w_VD), roundings) for w_VD, roundings in chunks]
    return np.concatenate(parts, axis=1)


def _rope(case: _Case) -> np.ndarray:
    """Two products with a rounded table and one sum: three roundings of |x cos| + |x' sin|."""
    x = np.abs(case.tensor(LAYER_OP[case.site].inputs[0]))
    cos_TR, sin_TR = (np.abs(t)[:, None] for t in _rotation(case))
    even, odd = x[..., 0::2], x[..., 1::2]
    size = np.stack([even * cos_TR + odd * sin_TR, even * sin_TR + odd * cos_TR], axis=-1)
    error = case.precision.gamma(3) * size.reshape(x.shape) + 2 * case.precision.tiny
    return error if case.precision.angle is None else error + _turned(case, even, odd)


def _turned(case: _Case, even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """What an error of the angle turns a pair by: no more than |angle error| (|x| + |x'|).

    Frequency i is made with at most i + 1 powers or products of relative error 2 exp_ulp + 1 units
    each, and its product with the position rounds once.
    """
    u, pairs_R = unit_roundoff(case.precision.angle), np.arange(even.shape[-1])
    relative_R = np.expm1(((pairs_R + 1) * (2 * case.precision.exp_ulp + 1) + 1) * np.log1p(u))
    config, positions_T = case.oracle.config, np.asarray(case.inputs["positions"], np.float64)
    frequency_R = config.frequencies(case.layer)
    angle_TR = np.abs(positions_T)[:, None] * frequency_R * relative_R
    moved = angle_TR[:, None] * (even + odd)
    return np.stack([moved, moved], axis=-1).reshape(*even.shape[:-1], -1)


def _rotation(case: _Case):
    return case.oracle.config.rotation(np.asarray(case.inputs["positions"]))


def _scores(case: _Case) -> np.ndarray:
    """The dot over H; the scale: its constant, its product, and one more for a folded log2(e)."""
    q_TNH, k_SKH = np.abs(case.tensor("attn.q_rope")), np.abs(case.tensor("kv.k"))
    p, (T, N, H) = case.precision, q_TNH.shape
    q_TKGH = q_TNH.reshape(T, k_SKH.shape[1], -1, H)
    size_TNS = np.einsum("TKGH,SKH->TKGS", q_TKGH, k_SKH).reshape(T, N, -1)
    size_TNS = size_TNS * case.oracle.config.layer(case.layer).score_scale
    return p.sum_error(H, 3) * size_TNS + H * p.tiny * (1 + k_SKH.max())


def _probs_of(case: _Case) -> tuple[np.ndarray, np.ndarray]:
    """Reference probabilities and their error.

    An error d_i of the exponent of p_i multiplies it by exp(d_i), and the sum that divides it by at
    least sum p_j exp(-d_j). d_i holds the score's error, three roundings of score and maximum (the
    subtraction and a conversion to base 2), the exponential's error, and an online softmax's
    rescaling by exp(m_old - m_new), each of which may err as much again.
    """
    p = case.precision
    inputs = {k: case.inputs[k] for k in ("attn.q_rope", "kv.k", "positions") if k in case.inputs}
    fp64 = case.oracle.with_policy(Policy.fp64())
    score_TNS = replay(fp64, "attn.scores", case.layer, inputs)
    prob_TNS = replay(fp64, "attn.probs", case.layer, inputs)
    S = score_TNS.shape[-1]
    visible = np.isfinite(score_TNS)
    size_TNS = np.where(visible, np.abs(score_TNS), 0)
    largest_TN1 = size_TNS.max(axis=-1, keepdims=True)
    rescales = S if p.rescales is None else p.rescales
    exp_error = p.exp_ulp * 2 * p.u
    exponent_TNS = np.where(visible, _scores(case), 0) + 3 * p.u * (size_TNS + largest_TN1)
    exponent_TNS = exponent_TNS + exp_error
    exponent_TNS = exponent_TNS + rescales * (exp_error + p.u + 6 * p.u * largest_TN1)
    lost_TN1 = np.sum(prob_TNS * np.expm1(-exponent_TNS), axis=-1, keepdims=True)
    total = exponent_TNS - np.log1p(np.maximum(lost_TN1, -1)) + math.log1p(p.gamma(S + 3))
    return prob_TNS, prob_TNS * np.expm1(total) + visible * p.tiny


def _probs(case: _Case) -> np.ndarray:
    return _probs_of(case)[1]


def _attend(case: _Case) -> np.ndarray:
    """The probabilities' error through |v|, and the weighted sum's own."""
    prob_TNS, error_TNS = _probs_of(case)
    p, (T, N, S) = case.precision, prob_TNS.shape
    v_SKH = np.abs(case.tensor("kv.v"))
    weight_TNS = error_TNS + p.sum_error(S, 3) * (prob_TNS + error_TNS)
    weight_TKGS = weight_TNS.reshape(T, v_SKH.shape[1], -1, S)
    out = np.einsum("TKGS,SKH->TKGH", weight_TKGS, v_SKH).reshape(T, N, -1)
    return out + S * p.tiny * (1 + v_SKH.max())


def _swiglu(case: _Case) -> np.ndarray:
    """gate/(1+exp(-gate))*up: the exponential's share is damped by exp(-g)/(1+exp(-g))."""
    p = case.precision
    gate_TF = case.tensor("ffn.gate")
    exponent = 3 * p.u * np.abs(gate_TF) + p.exp_ulp * 2 * p.u
    share = 1 / (1 + np.exp(gate_TF))
    relative = (1 / (1 - np.minimum(share * np.expm1(exponent), 0.5))) * (1 + p.gamma(4)) - 1
    overflows = np.exp(-gate_TF) * (1 + exponent) >= float(jnp.finfo(p.accumulate).max)
    lost = np.where(overflows, np.abs(case.ref), 0)
    return relative * np.abs(case.ref) + lost + p.tiny * (1 + np.abs(case.tensor("ffn.up")))


def _add(case: _Case) -> np.ndarray:
    return case.precision.u * np.abs(case.ref) + case.precision.tiny


BOUNDS = {
    "embed": _embed,
    "attn.norm": _rms_norm,
    "attn.q": _projection,
    "attn.k": _projection,
    "attn.v": _projection,
    "attn.q_rope": _rope,
    "attn.k_rope": _rope,
    "kv.k": _copy,
    "kv.v": _copy,
    "attn.scores": _scores,
    "attn.probs": _probs,
    "attn.out": _attend,
    "attn.proj": _projection,
    "resid.mid": _add,
    "ffn.norm": _rms_norm,
    "ffn.gate": _projection,
    "ffn.up": _projection,
    "ffn.act": _swiglu,
    "ffn.down": _projection,
    "resid.out": _add,
    "final.norm": _rms_norm,
    "logits": _logits,
}
