"""What rounding may do to the rotation and to attention's three ops."""

import numpy as np

from greta_jax.bound_case import Case, capped, largest, softmax
from greta_jax.precision import unit_roundoff
from greta_jax.replay import replay
from greta_jax.sum_bounds import dot_error


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
    """The dot over H; the scale: its constant, its product, and one more for a folded log2(e)."""
    q_TNH, k_SKH = case.tensor("attn.q_rope"), case.tensor("kv.k")
    p, cfg, H = case.precision, case.cfg, q_TNH.shape[-1]
    size_TNS = _per_kv_head(np.abs(q_TNH), np.abs(k_SKH), lambda q_MH, k_SH: q_MH @ k_SH.T)
    flushed = H * p.tiny * (1 + largest(k_SKH) + largest(q_TNH))
    if p.order is None:
        error_TNS = p.sum_error(H, 3) * size_TNS
    else:
        running_TNS = _per_kv_head(q_TNH, k_SKH, lambda q_MH, k_SH: dot_error(p, q_MH, k_SH))
        error_TNS = (running_TNS + p.gamma(3) * size_TNS) * (1 + p.gamma(3))
    error_TNS = error_TNS * cfg.score_scale + flushed
    if cfg.score_cap is None:
        return error_TNS
    exact_TNS = _per_kv_head(q_TNH, k_SKH, lambda q_MH, k_SH: q_MH @ k_SH.T) * cfg.score_scale
    return capped(p, cfg.score_cap * np.tanh(exact_TNS / cfg.score_cap), error_TNS, cfg.score_cap)


def probs_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Reference probabilities and their error."""
    p = case.precision
    inputs = {k: case.inputs[k] for k in ("attn.q_rope", "kv.k", "positions") if k in case.inputs}
    score_TNS = replay(case.oracle, "attn.scores", case.layer, inputs)
    prob_TNS = replay(case.oracle, "attn.probs", case.layer, inputs)
    seen_S = np.nonzero(np.isfinite(score_TNS).any(axis=(0, 1)))[0]
    live = int(np.max(seen_S, initial=0)) + 1
    rescales = score_TNS.shape[-1] if p.rescales is None else p.rescales
    return prob_TNS, softmax(p, score_TNS, prob_TNS, scores(case), rescales, live)


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

    flushed = S * p.tiny * (1 + largest(v_SKH))
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


def _per_kv_head(x_TNX: np.ndarray, y_YKX: np.ndarray, product) -> np.ndarray:
    """`product` of each kv head's queries and keys: TNY."""
    (T, N, X), K = x_TNX.shape, y_YKX.shape[1]
    x_KMX = np.moveaxis(x_TNX.reshape(T, K, -1, X), 1, 0).reshape(K, -1, X)
    out_KMY = np.stack([product(x_KMX[k], y_YKX[:, k]) for k in range(K)])
    return np.moveaxis(out_KMY.reshape(K, T, N // K, -1), 0, 1).reshape(T, N, -1)
