"""What makes each dense Llama-like architecture differ, as one row of declarations each.

Sources: llama.cpp's llm_build_* of the architecture; transformers' modeling files, with which the
tests compare every row in fp64.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """One row. Defaults are llama's.

    rope: order of the pairs that RoPE turns, as the GGUF stores them. qkv_bias: projections to q, k
    and v have biases. qk_norm: RMS norm of q and k before RoPE, over each `head` or over `all`.
    pre_norms, post_norms: norms before attention and ffn, and of what they return. gate: ffn
    activation. fused: attn_qkv and ffn_up hold several matrices, one after the other.
    embed_by_sqrt_dim: embeddings are multiplied by sqrt(D). window_every: of this many layers the
    last sees everything and the others a sliding window (1: every layer has the window).
    window_unscaled: windowed layers have no RoPE scaling; window_rope_base: RoPE base of theirs (0:
    the model's). wide_scale_layers: the layer count of the one size whose scores are scaled by
    (D/N)^-1/2 instead of H^-1/2. experts: the ffn is a mixture of experts.
    """

    name: str
    rope: str = "interleaved"
    qkv_bias: bool = False
    qk_norm: str | None = None
    pre_norms: bool = True
    post_norms: bool = False
    gate: str = "silu"
    fused: bool = False
    embed_by_sqrt_dim: bool = False
    window_every: int = 1
    window_unscaled: bool = False
    window_rope_base: float = 0.0
    wide_scale_layers: int = 0
    experts: bool = False


ARCHITECTURES = {
    row.name: row
    for row in (
        Architecture("llama"),
        Architecture("llama-moe", experts=True),
        Architecture("granite"),
        Architecture("qwen2", rope="halves", qkv_bias=True),
        Architecture("qwen3", rope="halves", qk_norm="head"),
        Architecture("qwen3moe", rope="halves", qk_norm="head", experts=True),
        Architecture("phi3", rope="halves", fused=True),
        Architecture(
            "olmo2",
            rope="halves",
            qk_norm="all",
            pre_norms=False,
            post_norms=True,
            window_every=4,
            window_unscaled=True,
        ),
        Architecture(
            "gemma2",
            rope="halves",
            post_norms=True,
            gate="gelu",
            embed_by_sqrt_dim=True,
            window_every=2,
            wide_scale_layers=46,
        ),
        Architecture(
            "gemma3",
            rope="halves",
            qk_norm="head",
            post_norms=True,
            gate="gelu",
            embed_by_sqrt_dim=True,
            window_every=6,
            window_unscaled=True,
            window_rope_base=10000.0,
            wide_scale_layers=62,
        ),
    )
}
"""By `general.architecture`; "llama-moe" is what llama becomes with `expert_count` (Mixtral). MLA,
shared experts, recurrent and encoder architectures are refused by name. llama.cpp knows no window
in llama and phi3 files and computes without; here it is obeyed, as by transformers."""

NUMBER_KEYS = {
    "attention.scale": "score_scale",
    "attn_logit_softcapping": "score_cap",
    "final_logit_softcapping": "logit_cap",
    "logit_scale": "logit_scale",
    "residual_scale": "residual_scale",
    "embedding_scale": "embed_scale",
}
"""Optional positive numbers, each used by whichever architecture gives it."""
