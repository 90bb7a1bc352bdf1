"""What rounding may do to each op of the table: one small function an op, elementwise, in fp64.

Every factor counts roundings. Sums are bounded for any order, or from their partial sums in the
order that is declared (greta_jax.sum_bounds).
"""

import math

import numpy as np

from greta_jax.attention_bounds import attend, probs, rope, scores
from greta_jax.bound_case import Case, capped, projected, softmax
from greta_jax.precision import unit_roundoff
from greta_jax.sum_bounds import largest, total_error


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
    lost = total_error(p, squares)
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
    error = projected(p, x_TX, np.asarray(weight), case.signed(op.weights[0]), roundings)
    error = error.reshape(case.ref.shape)
    if op.bias is None:
        return error
    size = np.abs(case.ref - case.weight(op.bias)) + error
    return error + unit_roundoff(p.store) * size + p.u * (np.abs(case.ref) + error)


def logits(case: Case) -> np.ndarray:
    """A projection of chunks of the vocabulary, its scale and its soft cap."""
    p, cfg, weights = case.precision, case.cfg, case.oracle.weights
    x_TD = case.tensor("final.norm")
    signed_VD = case.signed("unembed_VD")
    parts, start = [], 0
    for magnitude, roundings in weights.unembed_magnitudes():
        rows = np.asarray(magnitude).reshape(-1, x_TD.shape[1])
        own = None if signed_VD is None else signed_VD[start : start + len(rows)]
        parts.append(projected(p, x_TD, rows, own, roundings))
        start += len(rows)
    error_TV = np.concatenate(parts, axis=1)
    if cfg.logit_scale != 1.0:
        error_TV = error_TV / abs(cfg.logit_scale)
        error_TV = error_TV + p.gamma(2) * (np.abs(case.ref) + error_TV) + p.tiny
    return capped(p, case.ref, error_TV, cfg.logit_cap)


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


def choose_experts(case: Case) -> np.ndarray:
    """The softmax, and the sum of those that are kept; 1 where rounding may keep another."""
    p, score_TE = case.precision, case.tensor("ffn.router")
    prob_TE = np.exp(score_TE - score_TE.max(axis=-1, keepdims=True))
    prob_TE = prob_TE / prob_TE.sum(axis=-1, keepdims=True)
    found, used = softmax(p, score_TE, prob_TE, 0.0), case.cfg.experts_used
    error_TE = found.error(p, np.ones_like(prob_TE))
    kept_TE = case.ref > 0
    least_T = np.min(np.where(kept_TE, prob_TE - error_TE, 1), axis=-1)
    most_T = np.max(np.where(kept_TE, 0, prob_TE + error_TE), axis=-1)
    share_T1 = np.sum(np.where(kept_TE, error_TE, 0), axis=-1, keepdims=True)
    share_T1 = share_T1 / np.sum(np.where(kept_TE, prob_TE, 0), axis=-1, keepdims=True)
    relative_TE = (1 + error_TE / prob_TE) * (1 + p.gamma(used + 3)) / (1 - share_T1) - 1
    error_TE = np.where(kept_TE, case.ref * relative_TE + p.tiny, 0)
    return np.where((least_T > most_T)[:, None], error_TE, 1)


def project_by_expert(case: Case) -> np.ndarray:
    """A projection of each expert's own part."""
    x_TEF, name = case.tensor("ffn.act"), case.op.weights[0]
    magnitude_EDF, roundings = case.oracle.weights.magnitude(name, case.layer)
    signed_EDF = case.signed(name)
    parts = [
        projected(
            case.precision,
            x_TEF[:, e],
            np.asarray(magnitude_EDF[e]),
            None if signed_EDF is None else signed_EDF[e],
            roundings,
        )
        for e in range(x_TEF.shape[1])
    ]
    return np.stack(parts, axis=1)


def mix_experts(case: Case) -> np.ndarray:
    """One product and the sum over the experts."""
    p, x_TED = case.precision, case.tensor("ffn.experts")
    weight_TE1 = case.tensor("ffn.route")[..., None]
    terms_TDE = np.moveaxis(x_TED * weight_TE1, 1, -1)
    flushed = terms_TDE.shape[-1] * p.tiny * (2 + largest(x_TED))
    return total_error(p, terms_TDE) + flushed


OP_BOUNDS = {
    "keep": copy,
    "rms_norm": rms_norm,
    "rms_norm_of_all_heads": rms_norm_of_all_heads,
    "project": projection,
    "unembed": logits,
    "rotate": rope,
    "rotate_halves": rope,
    "choose_experts": choose_experts,
    "project_by_expert": project_by_expert,
    "mix_experts": mix_experts,
    "attend_scores": scores,
    "attend_probs": probs,
    "attend_values": attend,
    "swiglu": swiglu,
    "geglu": geglu,
    "add": add,
    "add_scaled": add_scaled,
}
"""The bound of each function of greta_jax.ops that stands in a row of greta_jax.graph, by name."""
