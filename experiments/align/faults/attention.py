"""Faults of the kernels of attention and of the cache."""

from experiments.align.faults.fault import Fault, patch

LONG = {"prompt": ("p7_tiles",), "prefill": "valu"}
"""More than a tile of 64 slots."""
QUERIES_FOR_FP32 = 32.0
"""Makes some scores of the first layer, and not all, larger than the log of the largest fp32."""
QUERIES_FOR_FP16 = 1024.0
"""The same of products of q and k and 65504, the largest fp16."""

ATTENTION = (
    Fault(
        "newest_key_dropped",
        "R5",
        patch(
            "attention.h",
            "const int end = position + 1;",
            "const int end = position;",
        ),
        found_at=(0, "attn.out"),
        named="newest_key_missing",
    ),
    Fault(
        "kv_writer_of_another_stride",
        "R16",
        patch(
            "kv_append.hip",
            "position_T[row], H) + h;",
            "position_T[row], H) + h - head * H;",
        ),
        found_at=(0, "kv.k"),
        named="head_stride_short_by_a_slot",
    ),
    Fault(
        "kv_written_a_slot_late",
        patches=patch(
            "kv_append.hip",
            "position_T[row], H) + h;",
            "position_T[row] + 1, H) + h;",
        ),
        found_at=(0, "kv.k"),
        named="slot_of_the_token_before",
    ),
    Fault(
        "keys_a_slot_early",
        patches=patch(
            "attention_valu.h",
            "const int row = RowInChunk() + first * kRowsPerLoad;\n"
            "      for (int i = 0; i < kBatch; ++i) {\n"
            "        raw[i] = LoadRow(k, rows, row + i * kRowsPerLoad,",
            "const int row = RowInChunk() + first * kRowsPerLoad;\n"
            "      for (int i = 0; i < kBatch; ++i) {\n"
            "        const int at = row + i * kRowsPerLoad;\n"
            "        raw[i] = LoadRow(k, rows, at > 0 ? at - 1 : 0,",
        ),
        found_at=(0, "attn.out"),
        named="keys_read_one_slot_early",
    ),
    Fault(
        "values_a_slot_early",
        patches=patch(
            "attention_valu.h",
            "LoadRow(v, rows, index,",
            "LoadRow(v, rows, index > 0 ? index - 1 : 0,",
        ),
        found_at=(0, "attn.out"),
        named="values_read_one_slot_early",
    ),
    Fault(
        "tail_unmasked",
        patches=patch(
            "attention_valu.h",
            "score[i] = live.Has(slot) ?",
            "score[i] = slot >= live.first ?",
        ),
        found_at=(0, "attn.out"),
        named="tail_unmasked",
    ),
    Fault(
        "kv_heads_reversed",
        patches=patch(
            "attention.h",
            "TileRows::At(args.kv, sequence, kv_head, s0,",
            "TileRows::At(args.kv, sequence, args.K - 1 - kv_head, s0,",
        ),
        found_at=(0, "attn.out"),
        named="kv_heads_reversed",
    ),
    Fault(
        "softmax_sum_not_divided_out",
        patches=patch(
            "attn_merge.hip",
            "= out / sum;",
            "= out;",
        ),
        found_at=(0, "attn.out"),
        named="sum_not_divided_out",
    ),
    Fault(
        "kv_head_is_n_mod_k",
        "G1",
        patch(
            "attention.h",
            "(args.q_TNH + (row * args.N + head0) * kHeadDim, cos_sin_H, heads, shared);",
            "(args.q_TNH + (row * args.N + kv_head) * kHeadDim, cos_sin_H, heads, shared);",
        )
        + patch(
            "attention.h",
            "(row * args.N + head0 + g) * args.max_chunks + chunk;",
            "(row * args.N + head0 / heads + g * args.K) * args.max_chunks + chunk;",
        )
        + patch(
            "attention_valu.h",
            "q_GH + (g < heads ? g : heads - 1) * kHeadDim",
            "q_GH + (g < heads ? g : heads - 1) * 2 * kHeadDim",
        ),
        found_at=(0, "attn.out"),
        named="kv_head_is_n_mod_k",
    ),
    Fault(
        "splits_merged_without_rescale",
        patches=patch(
            "attention.h",
            "const float factor = Rescale(own, max);",
            "const float factor = own == -kInfinity ? 0.0f : 1.0f;",
        ),
        found_at=(0, "attn.out"),
        named="splits_of_64_merged_without_rescale",
        run=LONG,
    ),
    Fault(
        "empty_split_counted",
        patches=patch(
            "attention.h",
            "scratch.max[WaveId()][i] = -kInfinity, scratch.sum[WaveId()][i] = 0.0f;",
            "scratch.max[WaveId()][i] = 0.0f, scratch.sum[WaveId()][i] = 1.0f;",
        ),
        found_at=(0, "attn.out"),
        named="empty_splits_counted",
    ),
    Fault(
        "last_split_dropped",
        patches=patch(
            "attention.h",
            "const bool empty = s0 >= live.end ||",
            "const bool empty = s0 + kTile > live.end ||",
        ),
        found_at=(0, "attn.out"),
        named="last_split_dropped",
        run=LONG,
    ),
    Fault(
        "read_one_page_early",
        patches=patch(
            "attention.h",
            "kv.SlotOffset(sequence, kv_head, live.Nearest(s0 + LaneId()), H)",
            "kv.SlotOffset(sequence, kv_head, live.Nearest(s0 + LaneId()) -\n"
            "          (live.Nearest(s0 + LaneId()) < 16 ? 0 : 16), H)",
        ),
        found_at=(0, "attn.out"),
        named="read_a_page_of_16_early",
        options={"page_slots": 16},
        run={"prompt": ("p4_sys",)},
    ),
    Fault(
        "rows_of_mfma_result_permuted",
        patches=patch(
            "attention_mfma.h",
            "const int head = 4 * Quad() + r;",
            "const int head = Quad() + 4 * r;",
        ),
        found_at=(0, "attn.out"),
        named="rows_of_the_product_permuted",
        run={"route": "manual/mfma"},
    ),
    Fault(
        "row_sum_in_the_wrong_16_bit_type",
        patches=patch(
            "attention_mfma.h",
            "return FloatOf(static_cast<int32_t>("
            "static_cast<uint32_t>(static_cast<uint16_t>(x)) << 16));",
            "return static_cast<float>(__builtin_bit_cast(half_t, x));",
        ),
        found_at=(0, "attn.out"),
        named="row_sum_read_as_fp16",
        options={"kv_dtype": "bfloat16"},
        run={"route": "manual/mfma"},
    ),
    Fault(
        "fp32_cache_of_fp16_numbers",
        patches=patch(
            "kv_view.h",
            "  static_cast<Cache*>(slab)[at] = CacheType<Cache>::From(x);",
            "  x = static_cast<float>(static_cast<_Float16>(x));\n"
            "  static_cast<Cache*>(slab)[at] = CacheType<Cache>::From(x);",
        ),
        found_at=(0, "kv.k"),
        named="stored_in_float16",
        options={"kv_dtype": "float32"},
    ),
    Fault(
        "fp8_stored_as_fn",
        patches=patch(
            "kv_view.h",
            "__builtin_amdgcn_cvt_pk_fp8_f32(x, x, 0, false)",
            "__builtin_amdgcn_cvt_pk_fp8_f32(0.5f * x, 0.5f * x, 0, false)",
        ),
        found_at=(0, "kv.k"),
        named="stored_at_half",
        options={"kv_dtype": "float8_e4m3fnuz"},
    ),
    Fault(
        "fp8_read_as_fn",
        patches=patch(
            "kv_view.h",
            "x[4 * e] = low[0], x[4 * e + 1] = low[1];",
            "x[4 * e] = 2.0f * low[0], x[4 * e + 1] = 2.0f * low[1];",
        )
        + patch(
            "kv_view.h",
            "x[4 * e + 2] = high[0], x[4 * e + 3] = high[1];",
            "x[4 * e + 2] = 2.0f * high[0], x[4 * e + 3] = 2.0f * high[1];",
        ),
        found_at=(0, "attn.out"),
        named="cache_read_at_twice",
        options={"kv_dtype": "float8_e4m3fnuz"},
    ),
    Fault(
        "fp8_stored_without_its_scale",
        patches=patch("kv_view.h", "x = x / scale;", "x = x + 0.0f * scale;"),
        found_at=(0, "kv.k"),
        named="stored_at_another_scale",
        options={"kv_dtype": "float8_e4m3fnuz", "kv_scale": 0.25},
    ),
    Fault(
        "fp8_scale_never_multiplied_back",
        "L5",
        patch("attention.h", "= out * v_scale;", "= out + 0.0f * v_scale;"),
        found_at=(0, "attn.out"),
        named="scaled_by_a_constant",
        options={"kv_dtype": "float8_e4m3fnuz", "kv_scale": 2.0},
    ),
    Fault(
        "heads_transposed_before_the_projection",
        patches=patch(
            "attn_merge.hip",
            "*reinterpret_cast<float_x4*>(y_TNH + head * H + h) = out / sum;",
            "const int64_t n = head - row * N;\n"
            "  for (int e = 0; e < 4; ++e) y_TNH[(row * H + h + e) * N + n] = out[e] / sum;",
        ),
        found_at=(0, "attn.out"),
        named="heads_and_elements_transposed",
    ),
    Fault(
        "exponentials_to_base_2",
        patches=patch(
            "attention_valu.h",
            "const float weight = Exp(score[i] - max);",
            "const float weight = Exp((score[i] - max) * 0x1.62e43p-1f);",
        ),
        found_at=(0, "attn.out"),
        named="powers_of_2",
    ),
    Fault(
        "sums_of_v_in_fp16",
        "G3",
        patch(
            "attention_valu.h",
            "out[g][p] = __builtin_elementwise_fma(float_x2(weight[g][i]), v_row[p], out[g][p]);",
            "out[g][p] = __builtin_elementwise_fma(float_x2(weight[g][i]), v_row[p], out[g][p]);\n"
            "              for (int e = 0; e < 2; ++e) {\n"
            "                out[g][p][e] = static_cast<half_t>(out[g][p][e]);\n"
            "              }",
        ),
        found_at=(0, "attn.out"),
        unnamed="its bits follow from the order of the sums, which no captured tensor fixes",
        status="above_floor",
    ),
    Fault(
        "scores_in_fp16",
        "G3",
        patch(
            "attention_valu.h",
            "SoftCap(mine[i] * scale, softcap)",
            "SoftCap(static_cast<half_t>(mine[i] * scale), softcap)",
        ),
        found_at=(0, "attn.out"),
        named="scores_rounded_to_fp16",
    ),
    Fault(
        "scores_overflow_fp16",
        patches=patch(
            "attention_valu.h",
            "SoftCap(mine[i] * scale, softcap)",
            "SoftCap(static_cast<half_t>(mine[i]) * scale, softcap)",
        ),
        found_at=(0, "attn.out"),
        named="scores_in_fp16_before_the_scale",
        queries=QUERIES_FOR_FP16,
        run={"layers": "0"},
    ),
    Fault(
        "maximum_not_subtracted",
        patches=patch(
            "attention_valu.h",
            "max = ReduceLanes<Max>(max, kHeadLanes);",
            "max = 0.0f;",
        ),
        found_at=(0, "attn.out"),
        named="maximum_not_subtracted",
        queries=QUERIES_FOR_FP32,
    ),
)
