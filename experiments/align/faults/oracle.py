"""Faults of the oracle: the run must say that its reference is not to be believed."""

from experiments.align.faults.fault import ORACLE as NOT_SOUND
from experiments.align.faults.fault import Fault, patch

LONG = {"prompt": ("p7_tiles",), "prefill": "valu"}

ORACLE = (
    Fault(
        "oracle_sums_the_last_64_keys",
        "R8",
        patch(
            "greta_jax.ops",
            "return weight_TNS / jnp.sum(weight_TNS, axis=-1, keepdims=True)",
            """newer_TNS = jnp.flip(jnp.cumsum(jnp.flip(jnp.isfinite(score_TNS), -1), -1), -1)
        kept_TNS = jnp.where(newer_TNS <= 64, weight_TNS, 0)
        return kept_TNS / jnp.sum(weight_TNS, axis=-1, keepdims=True)""",
        ),
        says="attention weights of layer 0",
        code=NOT_SOUND,
        run=LONG,
    ),
    Fault(
        "oracle_without_a_causal_mask",
        patches=patch(
            "greta_jax.ops",
            "visible_TS = slot_1S <= positions_T1\n",
            "visible_TS = slot_1S <= jnp.max(positions_T1, keepdims=True) + 0 * positions_T1\n",
        ),
        says="prefill and decode logits differ",
        code=NOT_SOUND,
    ),
    Fault(
        "oracle_scales_by_1_over_h",
        patches=patch(
            "greta_jax.ops",
            "score_TNS = score_TKGS.reshape(T, N, -1) * score_TKGS.dtype.type(cfg.score_scale)",
            "score_TNS = score_TKGS.reshape(T, N, -1) * score_TKGS.dtype.type(1 / H)",
        ),
        says="the oracle breaks a law",
        code=NOT_SOUND,
    ),
    Fault(
        "oracle_reads_kv_head_n_mod_k",
        "G1",
        patch(
            "greta_jax.ops",
            "    q_TKGH = q_TNH.reshape(T, cfg.kv_heads, N // cfg.kv_heads, H)\n",
            "    q_TKGH = q_TNH.reshape(T, N // cfg.kv_heads, cfg.kv_heads, H).swapaxes(1, 2)\n",
        ),
        says="the oracle breaks a law",
        code=NOT_SOUND,
    ),
    Fault(
        "oracle_without_epsilon",
        patches=patch(
            "greta_jax.ops",
            "jnp.sqrt(mean_T1 + x_TD.dtype.type(cfg.rms_eps)) * scale",
            "jnp.sqrt(mean_T1) * scale",
        ),
        says="the oracle breaks a law",
        code=NOT_SOUND,
    ),
    Fault(
        "oracle_rotates_halves",
        "L6",
        patch(
            "greta_jax.ops",
            "even_TNR, odd_TNR = x_TNH[..., 0::2], x_TNH[..., 1::2]",
            "even_TNR, odd_TNR = jnp.split(x_TNH, 2, axis=-1)",
        ),
        says="the oracle breaks a law",
        code=NOT_SOUND,
    ),
    Fault(
        "oracle_with_a_byte_tokenizer",
        "L1",
        patch(
            "greta_jax.tokenizer",
            "        ids = self.encode(text)\n        if",
            "        return [1, *text.encode()]\n        if",
        ),
        says="token ids: a prompt begins with 1",
        code=NOT_SOUND,
    ),
)
