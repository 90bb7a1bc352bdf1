"""Faults of the weights: what the file says, and how it is decoded."""

from experiments.align.faults.fault import REFUSED, Fault, patch

WEIGHTS = (
    Fault(
        "q4_k_scales_of_late_blocks",
        "L2",
        patch(
            "weight_formats.h",
            "(low4 & 0x0f0f0f0f) | ((header[1] >> 2) & 0x30303030)",
            "(low4 & 0x0f0f0f0f) | ((header[1] >> 4) & 0x0c0c0c0c)",
        ),
        says="the device decodes",
        code=REFUSED,
    ),
    Fault(
        "q6_k_planes_swapped",
        "L3",
        patch(
            "weight_formats.h",
            "const uint32_t bits = tops[i] >> (2 * p);",
            "const uint32_t bits = tops[i] >> (2 - 2 * p);",
        ),
        says="the device decodes",
        code=REFUSED,
    ),
    Fault(
        "q4_k_scales_past_the_check",
        "L2",
        patch(
            "weight_formats.h",
            "(low4 & 0x0f0f0f0f) | ((header[1] >> 2) & 0x30303030)",
            "(low4 & 0x0f0f0f0f) | ((header[1] >> 4) & 0x0c0c0c0c)",
        ),
        found_at=(-1, "embed"),
        named="tops_of_late_scales_misplaced",
        options={"check_weights": False},
    ),
    Fault(
        "q4_k_nibbles_past_the_check",
        "L2",
        patch(
            "weight_formats.h",
            "const uint_x4 q = LoadAligned<uint_x4, 16>(block + 16 + 16 * (unit % 8));",
            "const uint_x4 r = LoadAligned<uint_x4, 16>(block + 16 + 16 * (unit % 8));\n"
            "    const uint_x4 q = ((r >> 4) & 0x0f0f0f0f) | ((r & 0x0f0f0f0f) << 4);",
        ),
        found_at=(-1, "embed"),
        named="nibbles_swapped",
        options={"check_weights": False},
    ),
    Fault(
        "q4_k_minima_added",
        patches=patch(
            "weight_formats.h",
            "{dmin * static_cast<float>(minima & 0xff),\n             dmin *",
            "{-dmin * static_cast<float>(minima & 0xff),\n             -dmin *",
        ),
        found_at=(-1, "embed"),
        named="minima_added",
        options={"check_weights": False},
    ),
    Fault(
        "q6_k_planes_past_the_check",
        "L3",
        patch(
            "weight_formats.h",
            "const uint32_t bits = tops[i] >> (2 * p);",
            "const uint32_t bits = tops[i] >> (2 - 2 * p);",
        ),
        found_at=(0, "attn.v"),
        named="planes_of_tops_swapped",
        options={"check_weights": False},
    ),
    Fault(
        "embedding_read_column_major",
        "R2",
        patch(
            "gather_rows.hip",
            "  for (int unit = ThreadId(); unit < D / kUnit; unit += kGatherThreads) {\n",
            """  for (int d = ThreadId(); d < D; d += kGatherThreads) {
    const int64_t flat = static_cast<int64_t>(d) * 4096 + row_T[token];
    const int column = flat % D;
    for (int unit = 0; unit < D / kUnit; ++unit) {
      const UnitWeights w = Format::Decode(w_VD + RowBytes<Format>(D) * (flat / D), unit);
      const int low = column - Format::LowStart(unit), high = column - Format::HighStart(unit);
      for (int e = 0; e < 16; ++e) {
        if (low == e) y_D[d] = w.low[e / 4][e % 4];
        if (high == e) y_D[d] = w.high[e / 4][e % 4];
      }
    }
  }
  if (row != nullptr) return;
  for (int unit = ThreadId(); unit < D / kUnit; unit += kGatherThreads) {
""",
        ),
        found_at=(-1, "embed"),
        named="read_column_major",
        options={"check_weights": False},
    ),
    Fault(
        "k_and_v_read_transposed",
        "L4",
        patch(
            "hip_engine.weights",
            "        tensors[name] = Tensor(name, rows, columns, raw.tensor_type, raw.data)\n",
            """        data, kind = raw.data, raw.tensor_type
        if "attn_k." in name or "attn_v." in name:
            from gguf import quants

            flat = quants.dequantize(data, kind).reshape(columns, rows)
            data, kind = flat.T.astype("float32", order="C"), GGMLQuantizationType.F32
        tensors[name] = Tensor(name, rows, columns, kind, data)
""",
        ),
        found_at=(0, "attn.k"),
        named="weight_read_transposed",
    ),
    Fault(
        "scale_of_each_head_left_in",
        "L5",
        patch(
            "hip_engine.weights",
            "        tensors[name] = Tensor(name, rows, columns, raw.tensor_type, raw.data)\n",
            """        data, kind = raw.data, raw.tensor_type
        if "attn_q." in name:
            from gguf import quants

            heads = quants.dequantize(data, kind).reshape(config.N, -1)
            scales = [[1 + head / 8] for head in range(config.N)]
            data = (heads * scales).reshape(rows, columns).astype("float32")
            kind = GGMLQuantizationType.F32
        tensors[name] = Tensor(name, rows, columns, kind, data)
""",
        ),
        found_at=(0, "attn.q"),
        named="scaled_by_a_constant",
    ),
    Fault(
        "configuration_of_another_model",
        "R13",
        patch("hip_engine.config", "return cls(**values)", 'return cls(**values | {"F": 1024})'),
        says="the configuration says",
        code=REFUSED,
    ),
    Fault(
        "unknown_format_read_as_f32",
        "R15",
        patch(
            "hip_engine.weights",
            "return FORMATS[self.type]",
            'return FORMATS[self.type] if self.type.name == "Q4_K" else "f32"',
        ),
        says="the device decodes",
        code=REFUSED,
    ),
)
