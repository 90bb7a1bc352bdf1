"""Faults of the other kernels: rotation, norms, products, sums."""

from experiments.align.faults.fault import Fault, patch

MFMA_PREFILL = {"prompt": ("p7_tiles",), "prefill": "mfma"}
TOKENS_OF_THE_PASS = patch(
    "gemm_mfma.hip",
    "GemmTile(const float* x_TD, const uint8_t* w_FD, float* y_TF, int tokens, int F,",
    "GemmTile(const float* x_TD, const uint8_t* w_FD, float* y_TF, int all_tokens, int tokens,\n"
    "         int F,",
) + patch("gemm_mfma.hip", "y_TF + token * F, tokens, F,", "y_TF + token * F, T, tokens, F,")

LAYERS = (
    Fault(
        "rope_in_halves",
        "L6",
        patch(
            "rope.hip",
            """  const float a = x_H[2 * i], b = x_H[2 * i + 1];
  y_H[2 * i] = __builtin_fmaf(a, cosine, -(b * sine));
  y_H[2 * i + 1] =""",
            """  const float a = x_H[i], b = x_H[i + half];
  y_H[i] = __builtin_fmaf(a, cosine, -(b * sine));
  y_H[i + half] =""",
        ),
        found_at=(0, "attn.q_rope"),
        named="rotated_in_halves",
    ),
    Fault(
        "rope_position_off_by_one",
        "G2",
        patch(
            "rope.hip",
            "static_cast<int64_t>(position_T[token]) * H",
            "static_cast<int64_t>(position_T[token] + 1) * H",
        ),
        found_at=(0, "attn.q_rope"),
        named="position_plus_one",
    ),
    Fault(
        "rope_skipped",
        patches=patch(
            "rope.hip",
            "static_cast<int64_t>(position_T[token]) * H",
            "static_cast<int64_t>(0 * position_T[token]) * H",
        ),
        found_at=(0, "attn.q_rope"),
        named="not_rotated",
    ),
    Fault(
        "residual_doubled",
        patches=patch(
            "elementwise.hip",
            "*reinterpret_cast<float_x4*>(y_TD + i) = a + b;",
            "*reinterpret_cast<float_x4*>(y_TD + i) = a + a + b;",
        ),
        found_at=(0, "resid.mid"),
        named="residual_doubled",
    ),
    Fault(
        "residual_missing",
        patches=patch(
            "elementwise.hip",
            "*reinterpret_cast<float_x4*>(y_TD + i) = a + b;",
            "*reinterpret_cast<float_x4*>(y_TD + i) = b + 0.0f * a;",
        ),
        found_at=(0, "resid.mid"),
        named="residual_missing",
    ),
    Fault(
        "norm_weight_missing",
        patches=patch(
            "rms_norm.hip",
            "y_D[i] = x_D[i] * scale * weight_D[i];",
            "y_D[i] = x_D[i] * scale + 0.0f * weight_D[i];",
        ),
        found_at=(0, "attn.norm"),
        named="scale_weight_missing",
    ),
    Fault(
        "sum_in_place_of_mean",
        patches=patch(
            "rms_norm.hip",
            "ReduceWorkgroup<Sum, kNormWaves>(squares, scratch) / static_cast<float>(D);",
            "ReduceWorkgroup<Sum, kNormWaves>(squares, scratch);",
        ),
        found_at=(0, "attn.norm"),
        named="sum_in_place_of_mean",
    ),
    Fault(
        "up_missing",
        patches=patch(
            "elementwise.hip",
            "y[e] = Silu(gate[e]) * up[e];",
            "y[e] = Silu(gate[e]) + 0.0f * up[e];",
        ),
        found_at=(0, "ffn.act"),
        named="up_missing",
    ),
    Fault(
        "rotated_twice",
        patches=patch(
            "rope.hip",
            "static_cast<int64_t>(position_T[token]) * H",
            "static_cast<int64_t>(2 * position_T[token]) * H",
        ),
        found_at=(0, "attn.q_rope"),
        named="rotated_twice",
    ),
    Fault(
        "rotated_backwards",
        patches=patch("rope.hip", "sine = turn[1];", "sine = -turn[1];"),
        found_at=(0, "attn.q_rope"),
        named="rotated_backwards",
    ),
    Fault(
        "rotated_in_part",
        patches=patch(
            "rope.hip",
            "const float cosine = turn[0], sine = turn[1];",
            "const float cosine = 2 * i < half ? turn[0] : 1.0f;\n"
            "  const float sine = 2 * i < half ? turn[1] : 0.0f;",
        ),
        found_at=(0, "attn.q_rope"),
        named="rotated_in_part",
    ),
    Fault(
        "mean_in_place_of_mean_square",
        patches=patch(
            "rms_norm.hip",
            "squares = __builtin_fmaf(x_D[i], x_D[i], squares);",
            "squares += __builtin_fabsf(x_D[i]);",
        ),
        found_at=(0, "attn.norm"),
        named="mean_in_place_of_mean_square",
    ),
    Fault(
        "one_added_to_the_norms_weight",
        patches=patch(
            "rms_norm.hip",
            "y_D[i] = x_D[i] * scale * weight_D[i];",
            "y_D[i] = x_D[i] * scale * (1.0f + weight_D[i]);",
        ),
        found_at=(0, "attn.norm"),
        named="one_added_to_the_weight",
    ),
    Fault(
        "epsilon_outside_the_root",
        patches=patch(
            "rms_norm.hip",
            "1.0f / __builtin_sqrtf(mean + eps);",
            "1.0f / (__builtin_sqrtf(mean) + eps);",
        ),
        found_at=(0, "attn.norm"),
        named="epsilon_outside_the_root",
    ),
    Fault(
        "gate_not_activated",
        patches=patch(
            "elementwise.hip", "y[e] = Silu(gate[e]) * up[e];", "y[e] = gate[e] * up[e];"
        ),
        found_at=(0, "ffn.act"),
        named="gate_not_activated",
    ),
    Fault(
        "gelu_in_place_of_silu",
        patches=patch(
            "elementwise.hip",
            "y[e] = Silu(gate[e]) * up[e];",
            "y[e] = gate[e] * up[e] / (1.0f + Exp(-1.5957691216f * (gate[e] +\n"
            "        0.044715f * gate[e] * gate[e] * gate[e])));",
        ),
        found_at=(0, "ffn.act"),
        named="gelu_by_tanh",
    ),
    Fault(
        "relu_in_place_of_silu",
        patches=patch(
            "elementwise.hip",
            "y[e] = Silu(gate[e]) * up[e];",
            "y[e] = __builtin_fmaxf(gate[e], 0.0f) * up[e];",
        ),
        found_at=(0, "ffn.act"),
        named="relu_in_place_of_silu",
    ),
    Fault(
        "branch_doubled",
        patches=patch(
            "elementwise.hip",
            "*reinterpret_cast<float_x4*>(y_TD + i) = a + b;",
            "*reinterpret_cast<float_x4*>(y_TD + i) = a + b + b;",
        ),
        found_at=(0, "resid.mid"),
        named="branch_doubled",
    ),
    Fault(
        "branch_missing",
        patches=patch(
            "elementwise.hip",
            "*reinterpret_cast<float_x4*>(y_TD + i) = a + b;",
            "*reinterpret_cast<float_x4*>(y_TD + i) = a + 0.0f * b;",
        ),
        found_at=(0, "resid.mid"),
        named="branch_missing",
    ),
    Fault(
        "tiles_of_mfma_gemm_stored_transposed",
        "R9",
        patch(
            "gemm_mfma.hip",
            "if (row < F && i < tokens) y_TF[static_cast<int64_t>(i) * F + row] = sum[r][e];",
            "if (row < F && i < tokens) {\n"
            "        if (all_tokens > 32) {\n"
            "          const int token = 4 * quad + e;\n"
            "          y_TF[static_cast<int64_t>(token) * F + row - token + i] = sum[r][e];\n"
            "        } else {\n"
            "          y_TF[static_cast<int64_t>(i) * F + row] = sum[r][e];\n"
            "        }\n"
            "      }",
        )
        + TOKENS_OF_THE_PASS,
        found_at=(0, "attn.q"),
        named="tile_stored_transposed",
        options={"max_rows": 64},
        run=MFMA_PREFILL,
    ),
    Fault(
        "fragments_of_mfma_gemm_transposed",
        "R4",
        patch(
            "gemm_mfma.hip",
            "  for (int first = 0; first < units; first += kQuadUnits) {\n",
            """  for (int c = 0; c < D && all_tokens > 32; c += kMfmaSide) {
    // Fragments of 16 columns, element [k][i] where [i][k] belongs.
    half_x4 b;
    for (int j = 0; j < 4; ++j) {
      const int token = 4 * quad + j < tokens ? 4 * quad + j : tokens - 1;
      b[j] = static_cast<half_t>(x_TD[static_cast<int64_t>(token) * D + c + i]);
    }
    for (int r = 0; r < kRowTiles; ++r) {
      half_x4 a;
      for (int j = 0; j < 4; ++j) {
        const int row = first_row + r * kMfmaSide + 4 * quad + j;
        const uint8_t* from = w_FD + row_bytes * (row < F ? row : F - 1);
        float value = 0.0f;
        for (int unit = 0; unit < D / kUnit; ++unit) {
          const UnitWeights w = Format::Decode(from, unit);
          const int low = c + i - Format::LowStart(unit), high = c + i - Format::HighStart(unit);
          for (int e = 0; e < 16; ++e) {
            if (low == e) value = w.low[e / 4][e % 4];
            if (high == e) value = w.high[e / 4][e % 4];
          }
        }
        a[j] = static_cast<half_t>(value);
      }
      sum[r] = __builtin_amdgcn_mfma_f32_16x16x16f16(a, b, sum[r], 0, 0, 0);
    }
  }
  for (int first = 0; first < units && all_tokens <= 32; first += kQuadUnits) {
""",
        )
        + TOKENS_OF_THE_PASS,
        found_at=(0, "attn.q"),
        named="fragments_loaded_transposed",
        options={"max_rows": 64},
        run=MFMA_PREFILL,
    ),
    Fault(
        "top1_of_half_the_waves",
        patches=patch(
            "argmax.hip",
            "for (int wave = 0; wave < kArgmaxWaves; ++wave)",
            "for (int wave = 0; wave < kArgmaxWaves / 8; ++wave)",
        ),
        says="top-1 is not the largest logit",
    ),
)
