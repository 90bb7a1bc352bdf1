"""Honest variants: a run with one of them must pass."""

from experiments.align.faults.fault import Fault, patch

DECOYS = (
    Fault(
        "pages_of_16_slots",
        options={"page_slots": 16},
    ),
    Fault(
        "pages_of_64_slots",
        options={"page_slots": 64},
    ),
    Fault(
        "pages_from_the_other_end",
        patches=patch(
            "hip_engine.page_pool",
            "self._free = list(range(pages - 1, -1, -1))",
            "self._free = list(range(pages))",
        ),
        options={"page_slots": 16},
    ),
    Fault(
        "cache_of_float32_declared",
        options={"kv_dtype": "float32"},
    ),
    Fault(
        "cache_of_bfloat16_declared",
        options={"kv_dtype": "bfloat16"},
    ),
    Fault(
        "context_of_100",
        options={"max_context": 100},
    ),
    Fault(
        "room_for_three_sequences",
        options={"sequences": 3},
    ),
    Fault(
        "waves_summed_backwards",
        patches=patch(
            "reduce.h",
            "for (int wave = 1; wave < kWaves; ++wave)",
            "for (int wave = kWaves - 1; wave > 0; --wave)",
        ),
    ),
    Fault(
        "products_not_contracted",
        patches=patch(
            "attention_valu.h",
            "dot = __builtin_elementwise_fma(q[g][p], k_row[p], dot);",
            "dot = dot + q[g][p] * k_row[p];",
        ),
    ),
    Fault(
        "reciprocal_in_place_of_division",
        patches=patch(
            "attn_merge.hip",
            "= out / sum;",
            "= out * (1.0f / sum);",
        ),
    ),
    Fault("route_fused_valu", run={"route": "fused/valu"}),
    Fault("route_manual_mfma", run={"route": "manual/mfma"}),
    Fault("route_fused_mfma", run={"route": "fused/mfma"}),
    Fault(
        "mfma_on_a_bfloat16_cache",
        options={"kv_dtype": "bfloat16"},
        run={"route": "manual/mfma"},
    ),
    Fault("scores_of_thousands", queries=1024.0),
    Fault("cache_of_fp8_declared", options={"kv_dtype": "float8_e4m3fnuz"}),
    Fault("cache_of_scaled_fp8", options={"kv_dtype": "float8_e4m3fnuz", "kv_scale": 2.0**-5}),
    Fault("prefill_batched", options={"max_rows": 16}, run={"prefill": "valu"}),
    Fault("prefill_on_matrix_cores", run={"prompt": ("p7_tiles",), "prefill": "mfma"}),
    Fault(
        "one_workgroup_for_all_chunks",
        patches=patch(
            "hip_engine.launcher", "MAX_CHUNK_WORKGROUPS)", "MAX_CHUNK_WORKGROUPS // 1024)"
        ),
    ),
    Fault(
        "exponential_of_the_hardware",
        patches=patch(
            "attention_valu.h",
            "const float weight = Exp(score[i] - max);",
            "const float weight = __builtin_amdgcn_exp2f((score[i] - max) * 0x1.715476p+0f);",
        ),
    ),
    Fault(
        "silu_by_the_textbook",
        patches=patch(
            "elementwise.hip",
            "y[e] = Silu(gate[e]) * up[e];",
            "y[e] = gate[e] / (1.0f + Exp(-gate[e])) * up[e];",
        ),
    ),
    Fault(
        "parts_of_a_row_summed_in_another_order",
        patches=patch(
            "gemv.hip",
            "(parts[0] + parts[1]) + (parts[2] + parts[3]);",
            "((parts[3] + parts[2]) + parts[1]) + parts[0];",
        ),
    ),
    Fault(
        "norm_divides_by_the_root",
        patches=patch(
            "rms_norm.hip",
            "y_D[i] = x_D[i] * scale * weight_D[i];",
            "y_D[i] = x_D[i] / (1.0f / scale) * weight_D[i];",
        ),
    ),
    Fault(
        "waves_of_a_chunk_merged_backwards",
        patches=patch(
            "attention.h",
            "for (int w = 0; w < kAttnWaves; ++w) {",
            "for (int w = kAttnWaves - 1; w >= 0; --w) {",
        ),
        run={"prompt": ("p7_tiles",), "prefill": "valu"},
    ),
    Fault(
        "pages_taken_in_another_order",
        patches=patch(
            "hip_engine.page_pool",
            "page = self._free.pop()",
            "page = self._free.pop(len(self._free) // 2)",
        ),
        options={"page_slots": 16},
        run={"prompt": ("p4_sys",)},
    ),
)
