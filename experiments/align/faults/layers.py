"""Faults of the other kernels: rotation, norms, products, sums."""

from experiments.align.faults.fault import Fault, patch

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
            "SumWorkgroup<kNormWaves>(squares, scratch) / static_cast<float>(D);",
            "SumWorkgroup<kNormWaves>(squares, scratch);",
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
)
