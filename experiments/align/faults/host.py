"""Faults of the engine's host code."""

from experiments.align.faults.fault import Fault, patch

HOST = (
    Fault(
        "kv_base_of_layer_0",
        "R7",
        patch(
            "hip_engine.engine",
            "return self._cache.layer_offset_bytes(layer)",
            "return self._cache.layer_offset_bytes(0)",
        ),
        found_at=(1, "attn.out"),
        named="kv_base_of_layer_0",
    ),
    Fault(
        "kv_base_of_previous_layer",
        patches=patch(
            "hip_engine.engine",
            "return self._cache.layer_offset_bytes(layer)",
            "return self._cache.layer_offset_bytes(max(layer - 1, 0))",
        ),
        found_at=(1, "attn.out"),
        named="kv_base_of_previous_layer",
    ),
    Fault(
        "kv_append_for_query_heads",
        "R6",
        patch(
            "hip_engine.forward",
            'at["attn.v"], rows, view, shape[1:], T)',
            'at["attn.v"], rows, view, (shape[0], shape[2]), T)',
        ),
        says="kv_append",
    ),
    Fault(
        "k_cached_before_rope",
        patches=patch(
            "hip_engine.forward",
            'kv_append(cache, turned[1], at["attn.v"],',
            'kv_append(cache, at["attn.k"], at["attn.v"],',
        ),
        found_at=(0, "kv.k"),
        named="cached_before_the_rotation",
    ),
    Fault(
        "k_and_v_cached_for_each_other",
        patches=patch(
            "hip_engine.forward",
            'kv_append(cache, turned[1], at["attn.v"],',
            'kv_append(cache, at["attn.v"], turned[1],',
        ),
        found_at=(0, "kv.k"),
        named="cached_for_each_other",
    ),
    Fault(
        "k_and_v_projected_for_each_other",
        patches=patch(
            "hip_engine.forward",
            'f"attn.{name}" for name in "qkv"}',
            "f\"attn.{dict(q='q', k='v', v='k')[name]}\" for name in \"qkv\"}",
        ),
        found_at=(0, "attn.k"),
        named="weight_of_v",
    ),
    Fault(
        "attention_weights_of_layer_0",
        patches=patch(
            "hip_engine.forward",
            'qkv = {f"{block}.attn_{name}.weight"',
            'qkv = {f"blk.0.attn_{name}.weight"',
        ),
        found_at=(1, "attn.q"),
        named="weight_of_layer_0",
    ),
    Fault(
        "rope_base_doubled",
        patches=patch(
            "hip_engine.memory_plan",
            "np.float64(config.rope_base)",
            "(2 * np.float64(config.rope_base))",
        ),
        found_at=(0, "attn.q_rope"),
        named="base_of_another_model",
    ),
    Fault(
        "attention_of_unrotated_queries",
        patches=patch(
            "hip_engine.forward",
            'at["attn.q" if fused else "attn.q_rope"]',
            'at["attn.q"]',
        ),
        found_at=(0, "attn.out"),
        named="queries_not_rotated",
    ),
    Fault(
        "softmax_scale_missing",
        patches=patch(
            "hip_engine.forward",
            'args["scale"] = config.H**-0.5',
            'args["scale"] = 1.0',
        ),
        found_at=(0, "attn.out"),
        named="scale_missing",
    ),
    Fault(
        "softmax_scale_1_over_h",
        patches=patch(
            "hip_engine.forward",
            'args["scale"] = config.H**-0.5',
            'args["scale"] = config.H**-1.0',
        ),
        found_at=(0, "attn.out"),
        named="scale_is_1_over_h",
    ),
    Fault(
        "norm_epsilon_of_another_model",
        patches=patch(
            "hip_engine.forward",
            "config.D, config.norm_eps, T)",
            "config.D, 100 * config.norm_eps, T)",
        ),
        found_at=(0, "attn.norm"),
        named="epsilon_of_another_model",
    ),
    Fault(
        "ffn_norm_with_attentions_weight",
        patches=patch(
            "hip_engine.forward",
            'f"{block}.ffn_norm.weight"',
            'f"{block}.attn_norm.weight"',
        ),
        found_at=(0, "ffn.norm"),
        named="weight_of_attn_norm",
    ),
    Fault(
        "gate_and_up_swapped",
        patches=patch(
            "hip_engine.forward",
            '_launch.swiglu(at["ffn.gate"], at["ffn.up"],',
            '_launch.swiglu(at["ffn.up"], at["ffn.gate"],',
        ),
        found_at=(0, "ffn.act"),
        named="gate_and_up_exchanged",
    ),
    Fault(
        "final_norm_skipped",
        patches=patch(
            "hip_engine.forward",
            'self._project("final.norm", {output: "logits"}',
            'self._project("resid.out", {output: "logits"}',
        ),
        found_at=(-1, "logits"),
        named="input_not_normalised",
    ),
)
