"""What rounding may do to the rotation and to attention's three ops."""

import numpy as np

from greta_jax.bound_case import Case, Softmax, capped, softmax
from greta_jax.core_bounds import operand, operand_error
from greta_jax.precision import unit_roundoff
from greta_jax.sum_bounds import dot_error, largest


def rope(case: Case) -> np.ndarray:
    """Two products with a rounded table and one sum: three roundings of |x cos| + |x' sin|."""
    p, x = case.precision, np.abs(case.tensor(case.op.inputs[0]))
    tables = case.oracle.config.rotation(np.asarray(case.tensor("positions")), case.layer)
    cos, sin = (np.abs(t)[:, None] for t in tables)
    R = tables[0].shape[1]
    if case.op.function.__name__ == "rotate_halves":
        one, other, rest = np.split(x, (R, 2 * R), axis=-1)
    else:
        one, other, rest = x[..., 0::2], x[..., 1::2], None
    sizes = one * cos + other * sin, one * sin + other * cos
    turned = 0.0 if p.angle is None else _turned(case, one + other)
    errors = [p.gamma(3) * size + turned + 2 * p.tiny for size in sizes]
    if rest is None:
        return np.stack(errors, -1).reshape(x.shape)
    return np.concatenate((*errors, np.full_like(rest, p.tiny)), -1)


def _turned(case: Case, size_TNR: np.ndarray) -> np.ndarray:
    """What an error of the angle turns a pair by: |angle error| (|x| + |x'|) at most, scaled.

    Frequency i is made with at most i + 1 powers or products of relative error 2 exp_ulp + 1 units
    each, and its product with the position rounds once.
    """
    u, pairs_R = unit_roundoff(case.precision.angle), np.arange(size_TNR.shape[-1])
    relative_R = np.expm1(((pairs_R + 1) * (2 * case.precision.exp_ulp + 1) + 1) * np.log1p(u))
    rotation = case.oracle.config.rope_of(case.layer)
    angle_TR = np.abs(case.tensor("positions"))[:, None] * rotation.frequencies() * relative_R
    return rotation.magnitude * angle_TR[:, None] * size_TNR


def scores(case: Case) -> np.ndarray:
    """The dot over H; the scale: its constant, its product, and one more for a folded log2(e).

    q may be scaled before it is rounded to the operand; the cache is multiplied as it lies there.
    """
    q_TNH, k_SKH = case.tensor("attn.q_rope"), case.tensor("kv.k")
    p, cfg = case.precision, case.cfg
    taken_SKH = operand(p, k_SKH)

    def error(q_MH, k_SH):
        wobble_MH = operand_error(p, np.abs(q_MH))
        return dot_error(p, (q_MH, wobble_MH), (k_SH, None)) + wobble_MH @ np.abs(k_SH).T

    def exact(q_MH, k_SH):
        return q_MH @ k_SH.T

    size_TNH = np.abs(q_TNH) + operand_error(p, np.abs(q_TNH))
    size_TNS = _per_kv_head(size_TNH, np.abs(taken_SKH), exact)
    error_TNS = _per_kv_head(q_TNH, taken_SKH, error)
    error_TNS = error_TNS + np.abs(_per_kv_head(q_TNH, taken_SKH - k_SKH, exact))
    error_TNS = (error_TNS * (1 + p.gamma(3)) + p.gamma(3) * size_TNS) * cfg.score_scale + p.tiny
    if cfg.score_cap is None:
        return error_TNS
    exact_TNS = _per_kv_head(q_TNH, k_SKH, exact) * cfg.score_scale
    return capped(p, cfg.score_cap * np.tanh(exact_TNS / cfg.score_cap), error_TNS, cfg.score_cap)


def probs_of(case: Case) -> tuple[Softmax, np.ndarray]:
    """What rounding may do to the probabilities; which slots a query sees."""
    p, score_TNS, prob_TNS = case.precision, case.score_TNS, case.prob_TNS
    visible_TNS = np.isfinite(score_TNS)
    seen_S = np.nonzero(visible_TNS.any(axis=(0, 1)))[0]
    live = int(np.max(seen_S, initial=0)) + 1
    rescales = score_TNS.shape[-1] if p.rescales is None else p.rescales
    return softmax(p, score_TNS, prob_TNS, scores(case), rescales, live), visible_TNS


def probs(case: Case) -> np.ndarray:
    """Softmax."""
    found, visible_TNS = probs_of(case)
    return found.error(case.precision, visible_TNS)


def attend(case: Case) -> np.ndarray:
    """Weights that sum to 1: an error of one moves the result by it times v - out, and not v.

    With weights p r over a sum z, out' = sum p (r - 1)(v - out) / z + out (sum p r) / z, since
    sum p (v - out) = 0. So what the computed sum lost is relative to out, and only the roundings of
    a single weight, to the operand and by the division, meet v itself.
    """
    found, _ = probs_of(case)
    p, v_SKH = case.precision, case.tensor("kv.v")
    rescales = found.prob.shape[-1] if p.rescales is None else p.rescales
    live = int(np.max(np.nonzero((found.prob > 0).any(axis=(0, 1)))[0], initial=0)) + 1
    prob_TNS, v_SKH = found.prob[..., :live], v_SKH[:live]
    taken_SKH = operand(p, v_SKH)
    high_TNS = prob_TNS * np.exp(found.exponent[..., :live])
    moved_TNS = high_TNS - prob_TNS
    # Summed before they are rounded to the operand, weights meet v there; after, v - out.
    rounded_TNS, operand_TNS = p.growth(1 + rescales) * high_TNS, operand_error(p, high_TNS)
    own_TNH = _weighted(rounded_TNS, np.abs(taken_SKH))
    own_TNH = own_TNH + _weighted(high_TNS, np.abs(taken_SKH - v_SKH))
    if p.operand_dtype is not None:
        by_itself_TNH = _weighted(operand_TNS, np.abs(taken_SKH))
        own_TNH = own_TNH + np.maximum(by_itself_TNH, _spread(operand_TNS, v_SKH, case.ref))
    error_TNH = (_spread(moved_TNS, v_SKH, case.ref) + own_TNH) / found.least

    def roundings(x_MX, v_HS):
        weight_MS, wobble_MS = np.split(x_MX, 2, axis=-1)
        return dot_error(p, (weight_MS, wobble_MS), (v_HS, None), scaled=True)

    wobble_TNS = moved_TNS + rounded_TNS + operand_TNS
    both_TNX = np.concatenate([prob_TNS, wobble_TNS], axis=-1) / found.least
    error_TNH = error_TNH + _per_kv_head(both_TNX, taken_SKH.transpose(2, 1, 0), roundings)
    above_TN1, below_TN1 = found.grown * (1 + p.gamma(2)), found.shrunk * (1 - p.gamma(2))
    error_TNH = error_TNH * (1 + p.gamma(2))
    error_TNH = error_TNH + np.abs(case.ref) * np.maximum(above_TN1 - 1, 1 - below_TN1)
    return error_TNH + 2 * live * p.tiny * (1 + largest(v_SKH))


def _weighted(weight_TNS, v_SKH):
    return _per_kv_head(weight_TNS, v_SKH.transpose(2, 1, 0), lambda w_MS, v_HS: w_MS @ v_HS.T)


def _spread(weight_TNS, v_SKH, out_TNH):
    """At least sum w |v - out|: the root of sum w times sum w (v - out)^2 (Cauchy and Schwarz)."""
    total_TN1 = weight_TNS.sum(axis=-1, keepdims=True)
    squares_TNH, center_TNH = _weighted(weight_TNS, v_SKH**2), total_TN1 * out_TNH**2
    found_TNH = squares_TNH - 2 * out_TNH * _weighted(weight_TNS, v_SKH) + center_TNH
    lost_TNH = 4 * len(v_SKH) * unit_roundoff("float64") * (squares_TNH + center_TNH)
    return np.sqrt(total_TN1 * (np.maximum(found_TNH, 0) + lost_TNH))


def _per_kv_head(x_TNX: np.ndarray, y_YKX: np.ndarray, product) -> np.ndarray:
    """`product` of each kv head's queries and keys: TNY."""
    (T, N, X), K = x_TNX.shape, y_YKX.shape[1]
    x_KMX = np.moveaxis(x_TNX.reshape(T, K, -1, X), 1, 0).reshape(K, -1, X)
    out_KMY = np.stack([product(x_KMX[k], y_YKX[:, k]) for k in range(K)])
    return np.moveaxis(out_KMY.reshape(K, T, N // K, -1), 0, 1).reshape(T, N, -1)
