"""What rounding may do to each op of the table: one small function an op, elementwise, in fp64.

Every factor counts roundings. Sums are bounded for any order, or from their partial sums in the
order that is declared (greta_jax.sum_bounds).
"""

import math
from dataclasses import dataclass

import numpy as np

from greta_jax.config import LayerConfig
from greta_jax.declared import OpPrecision
from greta_jax.errors import SiteError
from greta_jax.graph import Op
from greta_jax.model import Oracle
from greta_jax.precision import unit_roundoff
from greta_jax.replay import replay
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


def embedding(case: Case) -> np.ndarray:
    """Dequantisation's roundings; the scale's constant and product."""
    p, scale = case.precision, case.oracle.config.embed_scale
    ids_T = np.asarray(case.inputs["token_ids"])
    magnitude_TD, roundings = case.oracle.weights.embed_magnitudes(ids_T)
    error_TD = p.gamma(roundings) * np.asarray(magnitude_TD) * abs(scale)
    if scale == 1.0:
        return error_TD
    return error_TD + p.gamma(2) * (np.abs(case.ref) + error_TD) + p.tiny


def copy(case: Case) -> np.ndarray:
    """Nothing but the rounding of its storage."""
    return np.zeros_like(case.ref)


def rms_norm(case: Case) -> np.ndarray:
    """Over the last axis. Mean of squares: n+3 roundings, halved by the root; 5 more after it."""
    return _norm(case, case.tensor(case.op.inputs[0]), case.ref)


def rms_norm_of_all_heads(case: Case) -> np.ndarray:
    """One norm over all heads' elements."""
    x = case.tensor(case.op.inputs[0])
    rows = len(x)
    return _norm(case, x.reshape(rows, -1), case.ref.reshape(rows, -1)).reshape(case.ref.shape)


def _norm(case: Case, x: np.ndarray, ref: np.ndarray) -> np.ndarray:
    p, n = case.precision, x.shape[-1]
    squares = np.square(x)
    if p.order is None:
        lost = p.gamma(n) * squares.sum(axis=-1)
    else:
        lost = total_error(p, squares, p.u)
    mean = squares.mean(axis=-1) + case.cfg.rms_eps
    share = ((lost / n + p.tiny) / mean + p.gamma(4))[..., None]
    root = np.where(share < 1, 1 / np.sqrt(1 - np.minimum(share, 1)) - 1, np.inf)
    overflows = squares.sum(axis=-1, keepdims=True) * (1 + share) > p.largest
    relative = (1 + np.where(overflows, np.inf, root)) * (1 + p.gamma(5)) - 1
    gain = np.abs(case.weight(case.op.weights[0])).max() / np.sqrt(mean)[..., None]
    return relative * np.abs(ref) + p.tiny * (1 + 2 * gain)


def projection(case: Case) -> np.ndarray:
    """x times a weight, dequantised on the device; the bias joins the stored product."""
    op, p = case.op, case.precision
    x = case.tensor(op.inputs[0])
    x_TX = x.reshape(len(x), -1)
    weight, roundings = case.oracle.weights.magnitude(op.weights[0], case.layer)
    signed = None if p.order is None else case.weight(op.weights[0])
    error = _dot(p, x_TX, np.asarray(weight), signed, roundings).reshape(case.ref.shape)
    if op.bias is None:
        return error
    size = np.abs(case.ref - case.weight(op.bias)) + error
    return error + unit_roundoff(p.store) * size + p.u * (np.abs(case.ref) + error)


def _dot(p: OpPrecision, x_TX, weight, signed, roundings: int) -> np.ndarray:
    """n products and sums, the weight's roundings, and three for factors taken out of the sum.

    `weight`: magnitudes that its dequantisation is relative to; `signed`: its values, for the
    partial sums of a declared order.
    """
    n = x_TX.shape[1]
    weight_EX = weight.reshape(-1, n)
    size_TE = np.abs(x_TX) @ weight_EX.T
    flushed = n * p.tiny * (1 + weight_EX.max() + np.abs(x_TX).max())
    if signed is None:
        overflows = size_TE * (1 + p.sum_error(n, roundings + 3)) > p.largest
        return np.where(overflows, np.inf, p.sum_error(n, roundings + 3) * size_TE + flushed)
    running_TE = dot_error(p, x_TX, signed.reshape(-1, n))
    own_TE = p.gamma(roundings + 3) * size_TE
    return (running_TE + own_TE * (1 + p.growth(n))) * (1 + p.gamma(3)) + flushed


def logits(case: Case) -> np.ndarray:
    """A projection of chunks of the vocabulary, its scale and its soft cap."""
    p, cfg, weights = case.precision, case.cfg, case.oracle.weights
    x_TD = case.tensor("final.norm")
    signed_VD = None if p.order is None else case.weight("unembed_VD")
    parts, start = [], 0
    for magnitude, roundings in weights.unembed_magnitudes():
        rows = np.asarray(magnitude).reshape(-1, x_TD.shape[1])
        own = None if signed_VD is None else signed_VD[start : start + len(rows)]
        parts.append(_dot(p, x_TD, rows, own, roundings))
        start += len(rows)
    error_TV = np.concatenate(parts, axis=1)
    if cfg.logit_scale != 1.0:
        error_TV = error_TV / abs(cfg.logit_scale)
        error_TV = error_TV + p.gamma(2) * (np.abs(case.ref) + error_TV) + p.tiny
    return _capped(p, case.ref, error_TV, cfg.logit_cap)


def _capped(p: OpPrecision, ref: np.ndarray, error: np.ndarray, cap: float | None) -> np.ndarray:
    """cap * tanh(x / cap): two roundings before tanh, its own, two after.

    tanh is no steeper than 1; and y * tanh'(y) <= tanh(y), so that a relative error of x, as those
    roundings are, makes no larger one of the result.
    """
    if cap is None:
        return error
    return error + (p.gamma(4) + p.exp_ulp * 2 * p.u) * (np.abs(ref) + error) + 2 * p.tiny


def rope(case: Case) -> np.ndarray:
    """Two products with a rounded table and one sum: three roundings of |x cos| + |x' sin|."""
    p, x = case.precision, np.abs(case.tensor(case.op.inputs[0]))
    tables = case.oracle.config.rotation(np.asarray(case.tensor("positions")), case.layer)
    cos, sin = (np.abs(t)[:, None] for t in tables)
    halves = case.op.function.__name__ == "rotate_halves"
    one, other = np.split(x, 2, axis=-1) if halves else (x[..., 0::2], x[..., 1::2])
    sizes = one * cos + other * sin, one * sin + other * cos
    turned = 0.0 if p.angle is None else _turned(case, one + other)
    errors = [p.gamma(3) * size + turned + 2 * p.tiny for size in sizes]
    return np.concatenate(errors, -1) if halves else np.stack(errors, -1).reshape(x.shape)


def _turned(case: Case, size_TNR: np.ndarray) -> np.ndarray:
    """What an error of the angle turns a pair by: no more than |angle error| (|x| + |x'|).

    Frequency i is made with at most i + 1 powers or products of relative error 2 exp_ulp + 1 units
    each, and its product with the position rounds once.
    """
    u, pairs_R = unit_roundoff(case.precision.angle), np.arange(size_TNR.shape[-1])
    relative_R = np.expm1(((pairs_R + 1) * (2 * case.precision.exp_ulp + 1) + 1) * np.log1p(u))
    frequency_R = case.oracle.config.frequencies(case.layer)
    angle_TR = np.abs(case.tensor("positions"))[:, None] * frequency_R * relative_R
    return angle_TR[:, None] * size_TNR


def scores(case: Case) -> np.ndarray:
    """The dot over H; the scale: its constant, its product, and one more for a folded log2(e)."""
    q_TNH, k_SKH = case.tensor("attn.q_rope"), case.tensor("kv.k")
    p, cfg, H = case.precision, case.cfg, q_TNH.shape[-1]
    size_TNS = _per_kv_head(np.abs(q_TNH), np.abs(k_SKH), lambda q_MH, k_SH: q_MH @ k_SH.T)
    flushed = H * p.tiny * (1 + np.abs(k_SKH).max() + np.abs(q_TNH).max())
    if p.order is None:
        error_TNS = p.sum_error(H, 3) * size_TNS
    else:
        running_TNS = _per_kv_head(q_TNH, k_SKH, lambda q_MH, k_SH: dot_error(p, q_MH, k_SH))
        error_TNS = (running_TNS + p.gamma(3) * size_TNS) * (1 + p.gamma(3))
    error_TNS = error_TNS * cfg.score_scale + flushed
    if cfg.score_cap is None:
        return error_TNS
    exact_TNS = _per_kv_head(q_TNH, k_SKH, lambda q_MH, k_SH: q_MH @ k_SH.T) * cfg.score_scale
    return _capped(p, cfg.score_cap * np.tanh(exact_TNS / cfg.score_cap), error_TNS, cfg.score_cap)


def _per_kv_head(x_TNX: np.ndarray, y_YKX: np.ndarray, product) -> np.ndarray:
    """`product` of each kv head's queries and keys: TNY."""
    (T, N, X), K = x_TNX.shape, y_YKX.shape[1]
    x_KMX = np.moveaxis(x_TNX.reshape(T, K, -1, X), 1, 0).reshape(K, -1, X)
    out_KMY = np.stack([product(x_KMX[k], y_YKX[:, k]) for k in range(K)])
    return np.moveaxis(out_KMY.reshape(K, T, N // K, -1), 0, 1).reshape(T, N, -1)


def probs_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Reference probabilities and their error.

    An error d_i of the exponent of p_i multiplies it by exp(d_i), and the sum that divides it by at
    least sum p_j exp(-d_j). d_i holds the score's error, three roundings of score and maximum (the
    subtraction and a conversion to base 2), the exponential's error, and an online softmax's
    rescaling by exp(m_old - m_new), each of which may err as much again.
    """
    p = case.precision
    inputs = {k: case.inputs[k] for k in ("attn.q_rope", "kv.k", "positions") if k in case.inputs}
    score_TNS = replay(case.oracle, "attn.scores", case.layer, inputs)
    prob_TNS = replay(case.oracle, "attn.probs", case.layer, inputs)
    S = score_TNS.shape[-1]
    visible = np.isfinite(score_TNS)
    size_TNS = np.where(visible, np.abs(score_TNS), 0)
    largest_TN1 = size_TNS.max(axis=-1, keepdims=True)
    rescales = S if p.rescales is None else p.rescales
    exp_error = p.exp_ulp * 2 * p.u
    exponent_TNS = np.where(visible, scores(case), 0) + 3 * p.u * (size_TNS + largest_TN1)
    exponent_TNS = exponent_TNS + exp_error
    exponent_TNS = exponent_TNS + rescales * (exp_error + p.u + 6 * p.u * largest_TN1)
    lost_TN1 = np.sum(prob_TNS * np.expm1(-exponent_TNS), axis=-1, keepdims=True)
    if p.order is None:
        total_TN1 = p.gamma(S + 3)
    else:
        live = int(np.max(np.nonzero(visible.any(axis=(0, 1)))[0])) + 1
        total_TN1 = total_error(p, prob_TNS[..., :live], 0.0)[..., None] + p.gamma(3)
    total = exponent_TNS - np.log1p(np.maximum(lost_TN1, -1)) + np.log1p(total_TN1)
    return prob_TNS, prob_TNS * np.expm1(total) + visible * p.tiny


def probs(case: Case) -> np.ndarray:
    """Softmax."""
    return probs_of(case)[1]


def attend(case: Case) -> np.ndarray:
    """The probabilities' error through |v|, and the weighted sum's own."""
    prob_TNS, error_TNS = probs_of(case)
    p, S, v_SKH = case.precision, prob_TNS.shape[-1], case.tensor("kv.v")
    size_HKS = np.abs(v_SKH).transpose(2, 1, 0)

    def through(weight_TNS):
        return _per_kv_head(weight_TNS, size_HKS, lambda w_MS, v_HS: w_MS @ v_HS.T)

    flushed = S * p.tiny * (1 + np.abs(v_SKH).max())
    if p.order is None:
        return through(error_TNS + p.sum_error(S, 3) * (prob_TNS + error_TNS)) + flushed
    live = int(np.max(np.nonzero((prob_TNS > 0).any(axis=(0, 1)))[0], initial=0)) + 1
    running_TNH = _per_kv_head(
        prob_TNS[..., :live],
        v_SKH[:live].transpose(2, 1, 0),
        lambda w_MS, v_HS: dot_error(p, w_MS, v_HS),
    )
    carried = error_TNS * (1 + p.growth(S + 3)) + p.gamma(3) * prob_TNS
    return running_TNH * (1 + p.gamma(3)) + through(carried) + flushed


def swiglu(case: Case) -> np.ndarray:
    """gate/(1+exp(-gate))*up: the exponential's share is damped by exp(-g)/(1+exp(-g))."""
    p, gate_TF = case.precision, case.tensor("ffn.gate")
    exponent = 3 * p.u * np.abs(gate_TF) + p.exp_ulp * 2 * p.u
    lost = np.exp(-np.logaddexp(0, gate_TF)) * -np.expm1(-exponent)
    relative = (1 + p.gamma(4)) / (1 - lost) - 1
    overflows = np.exp(-gate_TF) * np.exp(exponent) >= p.largest
    error = relative * np.abs(case.ref) + np.where(overflows, np.abs(case.ref), 0)
    return error + p.tiny * (1 + np.abs(case.tensor("ffn.up")))


def geglu(case: Case) -> np.ndarray:
    """gate*(1+tanh(a))/2*up, a = sqrt(2/pi) (gate + 0.044715 gate^3), all of one sign: 7 roundings.

    tanh moves by no more than its argument, and less where it is flat; 1 + tanh may cancel.
    """
    p, gate_TF, up_TF = case.precision, case.tensor("ffn.gate"), np.abs(case.tensor("ffn.up"))
    with np.errstate(over="ignore"):
        argument = math.sqrt(2 / math.pi) * (np.abs(gate_TF) + 0.044715 * np.abs(gate_TF) ** 3)
    curve = np.tanh(argument)
    flattest = np.minimum(argument * (1 - p.gamma(7)), 350.0)
    moved = np.minimum(p.gamma(7) * argument / np.cosh(flattest) ** 2, 2.0)
    curve_error = moved + p.exp_ulp * 2 * p.u * curve + p.tiny
    rest = 1 + np.sign(gate_TF) * curve
    sum_error = curve_error + p.u * (rest + curve_error)
    error = np.abs(gate_TF) * 0.5 * up_TF * sum_error * (1 + p.gamma(3))
    return error + p.gamma(3) * np.abs(case.ref) + p.tiny * (1 + np.abs(gate_TF)) * (1 + up_TF)


def add(case: Case) -> np.ndarray:
    """One rounding; both terms and the sum may be flushed."""
    return case.precision.u * np.abs(case.ref) + 3 * case.precision.tiny


def add_scaled(case: Case) -> np.ndarray:
    """The scale's constant and product, and the sum."""
    p = case.precision
    part = np.abs(case.tensor(case.op.inputs[1]) * case.cfg.residual_scale)
    error = p.gamma(2) * part + 2 * p.tiny
    return error + p.u * (np.abs(case.ref) + error) + 3 * p.tiny


OP_BOUNDS = {
    "keep": copy,
    "rms_norm": rms_norm,
    "rms_norm_of_all_heads": rms_norm_of_all_heads,
    "project": projection,
    "unembed": logits,
    "rotate": rope,
    "rotate_halves": rope,
    "attend_scores": scores,
    "attend_probs": probs,
    "attend_values": attend,
    "swiglu": swiglu,
    "geglu": geglu,
    "add": add,
    "add_scaled": add_scaled,
}
"""The bound of each function of greta_jax.ops that stands in a row of greta_jax.graph, by name."""
