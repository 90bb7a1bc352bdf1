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
            "for (int wave = 1; wave < kWaves; ++wave) total += scratch_lds[wave];",
            "for (int wave = kWaves - 1; wave > 0; --wave) total += scratch_lds[wave];",
        ),
    ),
    Fault(
        "products_not_contracted",
        patches=patch(
            "attention_valu.h",
            "dot = __builtin_fmaf(q[g][e], k_row[e], dot);",
            "dot = dot + q[g][e] * k_row[e];",
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
)
