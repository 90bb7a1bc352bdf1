"""The arithmetic of a Llama layer: pure functions, one a site, in the dtype of their arguments.

Each takes the layer's configuration, how to compute, then the tensors its row of greta_jax.graph
names. Shapes are in the names; the token axis is the only batch.
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from greta_jax import reduce
from greta_jax.config import LayerConfig
from greta_jax.precision import Arithmetic, stored

LN2 = Fraction("0.69314718055994530941723212145817656808")


def keep(cfg: LayerConfig, how: Arithmetic, x):
    """The value as it is; storing it may still round it."""
    del cfg, how
    return x


def rms_norm(cfg: LayerConfig, how: Arithmetic, x_TD, scale_D):
    """x / rms(x) * scale, eps inside the root (Zhang and Sennrich 2019)."""
    if how.order == "native":
        mean_T1 = jnp.mean(jnp.square(x_TD), axis=-1, keepdims=True)
    else:
        total_T1 = reduce.total(jnp.square(x_TD), how.order)
        mean_T1 = total_T1 / total_T1.dtype.type(x_TD.shape[-1])
    scale = scale_D.reshape((1,) * (x_TD.ndim - 1) + (-1,))
    return x_TD / jnp.sqrt(mean_T1 + x_TD.dtype.type(cfg.rms_eps)) * scale


def rms_norm_of_all_heads(cfg: LayerConfig, how: Arithmetic, x_TNH, scale):
    """One norm over every head's elements together (OLMo 2)."""
    return rms_norm(cfg, how, x_TNH.reshape(x_TNH.shape[0], -1), scale).reshape(x_TNH.shape)


def project(cfg: LayerConfig, how: Arithmetic, x, rows):
    """Rows of a matrix (in row order, of any shape) times each token."""
    del cfg
    x_TX = x.reshape(x.shape[0], -1)
    rows_EX = rows.reshape(-1, x_TX.shape[1])
    if how.order != "native":
        return reduce.dot(x_TX, rows_EX, how.order).astype(how.compute)
    return jnp.einsum("TX,EX->TE", x_TX, rows_EX)


def unembed(cfg: LayerConfig, how: Arithmetic, x_TD, rows):
    """Logits of some rows of the vocabulary, scaled and softly capped where the model does so."""
    logits_TV = project(cfg, how, x_TD, rows)
    if cfg.logit_scale != 1.0:
        logits_TV = logits_TV / logits_TV.dtype.type(cfg.logit_scale)
    return soft_cap(logits_TV, cfg.logit_cap)


def soft_cap(x, cap: float | None):
    """cap * tanh(x / cap) (Gemma 2)."""
    if cap is None:
        return x
    return x.dtype.type(cap) * jnp.tanh(x / x.dtype.type(cap))


def choose_experts(cfg: LayerConfig, how: Arithmetic, router_TE):
    """Softmax over the experts, the largest kept and made to sum to 1 (Mixtral); 0 elsewhere."""
    probs_TE = attend_probs(cfg, how, router_TE[:, None])[:, 0]
    _, chosen_TX = jax.lax.top_k(probs_TE, cfg.experts_used)
    expert_11E = jnp.arange(probs_TE.shape[1], dtype=chosen_TX.dtype)[None, None]
    kept_TE = jnp.any(expert_11E == chosen_TX[..., None], axis=1)
    weight_TE = jnp.where(kept_TE, probs_TE, 0)
    return weight_TE / _sum_of_experts(how, weight_TE)


def project_by_expert(cfg: LayerConfig, how: Arithmetic, x_TEF, *rows):
    """Each expert's matrix (`rows` are those of all, in chunks) times its part of each token."""
    _, E, F = x_TEF.shape
    down_EDF = jnp.concatenate([part.reshape(-1, F) for part in rows]).reshape(E, -1, F)
    if how.order == "native":
        return jnp.einsum("TEF,EDF->TED", x_TEF, down_EDF)
    return jnp.stack([project(cfg, how, x_TEF[:, e], down_EDF[e]) for e in range(E)], axis=1)


def mix_experts(cfg: LayerConfig, how: Arithmetic, x_TED, weight_TE):
    """The experts' results by their weights; those that are not chosen do not count."""
    del cfg
    weight_TE1 = weight_TE[..., None]
    part_TDE = jnp.moveaxis(jnp.where(weight_TE1 == 0, 0, x_TED * weight_TE1), 1, -1)
    return _sum_of_experts(how, part_TDE)[..., 0]


def _sum_of_experts(how: Arithmetic, terms):
    """Over the last axis; no matrix core does it, so its order leaves this sum alone."""
    if how.order == "native" or how.order.startswith("mfma"):
        return jnp.sum(terms, axis=-1, keepdims=True)
    return reduce.total(terms, how.order)


def rotate(cfg: LayerConfig, how: Arithmetic, x_TNH, cos_TR, sin_TR):
    """RoPE on interleaved pairs (2i, 2i+1), the order of Q and K rows in a llama GGUF."""
    del cfg, how
    even_TNR, odd_TNR = x_TNH[..., 0::2], x_TNH[..., 1::2]
    cos_T1R, sin_T1R = cos_TR[:, None, :], sin_TR[:, None, :]
    pairs = (even_TNR * cos_T1R - odd_TNR * sin_T1R, even_TNR * sin_T1R + odd_TNR * cos_T1R)
    return jnp.stack(pairs, axis=-1).reshape(x_TNH.shape)


def rotate_halves(cfg: LayerConfig, how: Arithmetic, x_TNH, cos_TR, sin_TR):
    """RoPE on pairs (i, i + R), the order of every GGUF that is not llama's or granite's.

    Of heads longer than 2R, the elements after those stay as they are.
    """
    del cfg, how
    R = cos_TR.shape[1]
    low_TNR, high_TNR, rest = jnp.split(x_TNH, (R, 2 * R), axis=-1)
    cos_T1R, sin_T1R = cos_TR[:, None, :], sin_TR[:, None, :]
    turned = (low_TNR * cos_T1R - high_TNR * sin_T1R, low_TNR * sin_T1R + high_TNR * cos_T1R)
    return jnp.concatenate((*turned, rest), axis=-1)


def attend_scores(cfg: LayerConfig, how: Arithmetic, q_TNH, k_SKH, positions_T):
    """q.k * scale, -inf where a slot is later than the query's position or before its window."""
    T, N, H = q_TNH.shape
    q_TKGH = q_TNH.reshape(T, cfg.kv_heads, N // cfg.kv_heads, H)
    if how.order == "native":
        score_TKGS = jnp.einsum("TKGH,SKH->TKGS", q_TKGH, k_SKH)
    else:
        score_TKGS = per_kv_head(how.order, q_TKGH, k_SKH.transpose(1, 0, 2))
    score_TNS = score_TKGS.reshape(T, N, -1) * score_TKGS.dtype.type(cfg.score_scale)
    score_TNS = soft_cap(score_TNS, cfg.score_cap)
    slot_1S, positions_T1 = (
        jnp.arange(k_SKH.shape[0], dtype=jnp.int32)[None, :],
        positions_T[:, None],
    )
    visible_TS = slot_1S <= positions_T1
    if cfg.window is not None:
        visible_TS = visible_TS & (slot_1S > positions_T1 - cfg.window)
    return jnp.where(visible_TS[:, None, :], score_TNS, -jnp.inf)


def attend_probs(cfg: LayerConfig, how: Arithmetic, score_TNS):
    """Softmax over the slots, shifted by the row's maximum."""
    del cfg
    weight_TNS = exponential(how, score_TNS - jnp.max(score_TNS, axis=-1, keepdims=True))
    if how.order == "native":
        return weight_TNS / jnp.sum(weight_TNS, axis=-1, keepdims=True)
    seen_S = jnp.any(jnp.isfinite(score_TNS), axis=(0, 1))
    live = int(jnp.max(jnp.where(seen_S, jnp.arange(1, len(seen_S) + 1), 0)))
    return weight_TNS / reduce.total(weight_TNS[..., :live], how.order)


def attend_values(cfg: LayerConfig, how: Arithmetic, prob_TNS, v_SKH, positions_T):
    """Probability-weighted values; slots after every query are not read (they may hold NaN)."""
    T, N, S = prob_TNS.shape
    written_S = jnp.arange(S, dtype=jnp.int32) <= jnp.max(positions_T)
    v_SKH = jnp.where(written_S[:, None, None], v_SKH, 0)
    if how.probs is not None:
        prob_TNS = stored(prob_TNS, how.probs).astype(how.compute)
    prob_TKGS = prob_TNS.reshape(T, cfg.kv_heads, N // cfg.kv_heads, S)
    if how.order == "native":
        return jnp.einsum("TKGS,SKH->TKGH", prob_TKGS, v_SKH).reshape(T, N, -1)
    live = int(jnp.max(positions_T)) + 1
    values_KHS = v_SKH[:live].transpose(1, 2, 0)
    return per_kv_head(how.order, prob_TKGS[..., :live], values_KHS).reshape(T, N, -1)


def per_kv_head(order: str, x_TKGX, y_KYX):
    """Sums over X in a chosen order, a kv head at a time: TKGY."""
    T, K, G, X = x_TKGX.shape
    rows_KMX = jnp.moveaxis(x_TKGX, 1, 0).reshape(K, T * G, X)
    out_KMY = jnp.stack([reduce.dot(rows_KMX[k], y_KYX[k], order) for k in range(K)])
    return jnp.moveaxis(out_KMY.reshape(K, T, G, -1), 0, 1)


def exponential(how: Arithmetic, x):
    """exp(x). `polynomial`: x = n ln2 + r with ln2 in two parts, Taylor in r, then ldexp."""
    if how.exp == "native":
        return jnp.exp(x)
    info = jnp.finfo(x.dtype)
    high = Fraction(round(LN2 * 2 ** (info.nmant // 2)), 2 ** (info.nmant // 2))
    x = jnp.maximum(x, math.log(float(info.tiny)))
    n = jnp.round(x * x.dtype.type(math.log2(math.e)))
    r = (x - n * x.dtype.type(float(high))) - n * x.dtype.type(float(LN2 - high))
    degree = next(d for d in range(2, 40) if 0.35 ** (d + 1) / math.factorial(d + 1) < info.eps / 8)
    total = jnp.full_like(r, 1 / math.factorial(degree))
    for d in reversed(range(degree)):
        total = total * r + x.dtype.type(1 / math.factorial(d))
    return jnp.where(x <= math.log(float(info.tiny)), 0, jnp.ldexp(total, n.astype(jnp.int32)))


def swiglu(cfg: LayerConfig, how: Arithmetic, gate_TF, up_TF):
    """silu(gate) * up (Shazeer 2020)."""
    del cfg
    return gate_TF / (1 + exponential(how, -gate_TF)) * up_TF


def geglu(cfg: LayerConfig, how: Arithmetic, gate_TF, up_TF):
    """gelu(gate) * up with the tanh form of gelu (Hendrycks and Gimpel 2016; Gemma)."""
    del cfg, how
    cubic = gate_TF + gate_TF * gate_TF * gate_TF * gate_TF.dtype.type(0.044715)
    curve = jnp.tanh(cubic * gate_TF.dtype.type(math.sqrt(2 / math.pi)))
    return gate_TF * (1 + curve) * gate_TF.dtype.type(0.5) * up_TF


def add_scaled(cfg: LayerConfig, how: Arithmetic, x_TD, y_TD):
    """x + residual_scale * y (Granite)."""
    del how
    return x_TD + y_TD * y_TD.dtype.type(cfg.residual_scale)


def add(cfg: LayerConfig, how: Arithmetic, x_TD, y_TD):
    del cfg, how
    return jax.lax.add(x_TD, y_TD)
