"""The arithmetic of a Llama layer: pure functions, one a site, in the dtype of their arguments.

Each takes the layer's configuration, then the tensors its row of greta_jax.graph names. Shapes are
in the names; the token axis is the only batch.
"""

import jax
import jax.numpy as jnp

from greta_jax.config import LayerConfig


def keep(cfg: LayerConfig, x):
    """The value as it is; storing it may still round it."""
    del cfg
    return x


def rms_norm(cfg: LayerConfig, x_TD, scale_D):
    """x / rms(x) * scale, eps inside the root (Zhang and Sennrich 2019)."""
    mean_T1 = jnp.mean(jnp.square(x_TD), axis=-1, keepdims=True)
    return x_TD / jnp.sqrt(mean_T1 + x_TD.dtype.type(cfg.rms_eps)) * scale_D[None, :]


def project_q(cfg: LayerConfig, x_TD, w_NHD):
    del cfg
    return jnp.einsum("TD,NHD->TNH", x_TD, w_NHD)


def project_kv(cfg: LayerConfig, x_TD, w_KHD):
    del cfg
    return jnp.einsum("TD,KHD->TKH", x_TD, w_KHD)


def project_out(cfg: LayerConfig, out_TNH, w_DNH):
    del cfg
    return jnp.einsum("TNH,DNH->TD", out_TNH, w_DNH)


def project_up(cfg: LayerConfig, x_TD, w_FD):
    del cfg
    return jnp.einsum("TD,FD->TF", x_TD, w_FD)


def project_down(cfg: LayerConfig, act_TF, w_DF):
    del cfg
    return jnp.einsum("TF,DF->TD", act_TF, w_DF)


def unembed(cfg: LayerConfig, x_TD, w_VD):
    del cfg
    return jnp.einsum("TD,VD->TV", x_TD, w_VD)


def rotate(cfg: LayerConfig, x_TNH, cos_TR, sin_TR):
    """RoPE on interleaved pairs (2i, 2i+1), the order of Q and K rows in a llama GGUF."""
    del cfg
    even_TNR, odd_TNR = x_TNH[..., 0::2], x_TNH[..., 1::2]
    cos_T1R, sin_T1R = cos_TR[:, None, :], sin_TR[:, None, :]
    pairs = (even_TNR * cos_T1R - odd_TNR * sin_T1R, even_TNR * sin_T1R + odd_TNR * cos_T1R)
    return jnp.stack(pairs, axis=-1).reshape(x_TNH.shape)


def attend_scores(cfg: LayerConfig, q_TNH, k_SKH, positions_T):
    """q.k / sqrt(H), -inf where a slot is later than the query's position."""
    T, N, H = q_TNH.shape
    q_TKGH = q_TNH.reshape(T, cfg.kv_heads, N // cfg.kv_heads, H)
    score_TKGS = jnp.einsum("TKGH,SKH->TKGS", q_TKGH, k_SKH) * q_TNH.dtype.type(H**-0.5)
    visible_TS = jnp.arange(k_SKH.shape[0], dtype=jnp.int32)[None, :] <= positions_T[:, None]
    return jnp.where(visible_TS[:, None, :], score_TKGS.reshape(T, N, -1), -jnp.inf)


def attend_probs(cfg: LayerConfig, score_TNS):
    """Softmax over the slots, shifted by the row's maximum."""
    del cfg
    weight_TNS = jnp.exp(score_TNS - jnp.max(score_TNS, axis=-1, keepdims=True))
    return weight_TNS / jnp.sum(weight_TNS, axis=-1, keepdims=True)


def attend_values(cfg: LayerConfig, prob_TNS, v_SKH, positions_T):
    """Probability-weighted values; slots after every query are not read (they may hold NaN)."""
    T, N, S = prob_TNS.shape
    written_S = jnp.arange(S, dtype=jnp.int32) <= jnp.max(positions_T)
    v_SKH = jnp.where(written_S[:, None, None], v_SKH, 0)
    prob_TKGS = prob_TNS.reshape(T, cfg.kv_heads, N // cfg.kv_heads, S)
    return jnp.einsum("TKGS,SKH->TKGH", prob_TKGS, v_SKH).reshape(T, N, -1)


def swiglu(cfg: LayerConfig, gate_TF, up_TF):
    """silu(gate) * up (Shazeer 2020)."""
    del cfg
    return gate_TF / (1 + jnp.exp(-gate_TF)) * up_TF


def add(cfg: LayerConfig, x_TD, y_TD):
    del cfg
    return jax.lax.add(x_TD, y_TD)
