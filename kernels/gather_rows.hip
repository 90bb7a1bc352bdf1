// Rows of a weight matrix, decoded to fp32: the embedding of a token, and the check of weights at load.
#include "device.h"
#include "weight_formats.h"

constexpr int kGatherThreads = 256;

// Grid: x = token.
template <class Format>
GRETA_DEVICE void GatherRows(const uint8_t* w_VD, const int32_t* row_T, float* y_TD, int D) {
  const int64_t token = BlockX();
  const uint8_t* row = w_VD + RowBytes<Format>(D) * row_T[token];
  float* y_D = y_TD + token * D;
  for (int unit = ThreadId(); unit < D / kUnit; unit += kGatherThreads) {
    const UnitWeights w = Format::Decode(row, unit);
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(y_D + Format::LowStart(unit) + 4 * i, &w.low[i], sizeof(float_x4));
      __builtin_memcpy(y_D + Format::HighStart(unit) + 4 * i, &w.high[i], sizeof(float_x4));
    }
  }
  if constexpr (Format::kBlock == 1) {
    for (int i = D / kUnit * kUnit + ThreadId(); i < D; i += kGatherThreads) {
      y_D[i] = Format::Element(row, i);
    }
  }
}

#define GATHER_KERNEL(name, Format)                                                          \
  GRETA_KERNEL(kGatherThreads)                                                               \
  name(const uint8_t* __restrict__ w_VD, const int32_t* __restrict__ row_T,                  \
       float* __restrict__ y_TD, int D) {                                                    \
    GatherRows<Format>(w_VD, row_T, y_TD, D);                                                \
  }

GATHER_KERNEL(gather_rows_f32, F32)
GATHER_KERNEL(gather_rows_f16, F16)
GATHER_KERNEL(gather_rows_bf16, BF16)
GATHER_KERNEL(gather_rows_q4_0, Q40)
GATHER_KERNEL(gather_rows_q8_0, Q80)
GATHER_KERNEL(gather_rows_q4_k, Q4K)
GATHER_KERNEL(gather_rows_q5_k, Q5K)
GATHER_KERNEL(gather_rows_q6_k, Q6K)
