// Y = W X for many tokens on the matrix cores: weights are decoded to f16 in registers, x is rounded
// to f16, sums are fp32.
//
// 16x16x16: 16 rows of W are the rows of A, 16 tokens the columns of B. Lane (quad, i) decodes a
// whole unit of 32 weights of row i, another unit in every quad, and multiplies four consecutive
// ones at a time: eight products cover 128 columns of W. Which columns meet in a product follows
// from that and is the same for W and X. A wave has 64 rows and 16 tokens; four waves, other rows.
#include "device.h"
#include "weight_formats.h"

constexpr int kGemmWaves = 4;
constexpr int kMfmaSide = 16;
constexpr int kRowTiles = 4;
constexpr int kGemmRows = kRowTiles * kMfmaSide;  // of a wave
constexpr int kQuadUnits = 4;

GRETA_DEVICE half_x4 ToHalf(float_x4 x) { return __builtin_convertvector(x, half_x4); }

template <class Format>
GRETA_DEVICE void GemmTile(const float* x_TD, const uint8_t* w_FD, float* y_TF, int tokens, int F,
                           int D, int first_row) {
  const int quad = LaneId() / kMfmaSide, i = LaneId() % kMfmaSide;
  const int64_t row_bytes = RowBytes<Format>(D);
  const uint8_t* rows[kRowTiles];
  float_x4 sum[kRowTiles];
  for (int r = 0; r < kRowTiles; ++r) {
    const int row = first_row + r * kMfmaSide + i;
    rows[r] = w_FD + row_bytes * (row < F ? row : F - 1);
    sum[r] = float_x4(0.0f);
  }
  const float* x_D = x_TD + static_cast<int64_t>(i < tokens ? i : tokens - 1) * D;
  const int units = D / kUnit;
  for (int first = 0; first < units; first += kQuadUnits) {
    // A quad past the last unit repeats it with weights of zero.
    const bool inside = first + quad < units;
    const int unit = inside ? first + quad : units - 1;
    half_x4 x[8];
    for (int e = 0; e < 4; ++e) {
      const float_x4 low = LoadAligned<float_x4, 4>(x_D + Format::LowStart(unit) + 4 * e);
      const float_x4 high = LoadAligned<float_x4, 4>(x_D + Format::HighStart(unit) + 4 * e);
      x[e] = inside ? ToHalf(low) : half_x4(0);
      x[4 + e] = inside ? ToHalf(high) : half_x4(0);
    }
    for (int r = 0; r < kRowTiles; ++r) {
      const UnitWeights w = Format::Decode(rows[r], unit);
      for (int e = 0; e < 4; ++e) {
        const half_x4 low = inside ? ToHalf(w.low[e]) : half_x4(0);
        sum[r] = __builtin_amdgcn_mfma_f32_16x16x16f16(low, x[e], sum[r], 0, 0, 0);
      }
      for (int e = 0; e < 4; ++e) {
        const half_x4 high = inside ? ToHalf(w.high[e]) : half_x4(0);
        sum[r] = __builtin_amdgcn_mfma_f32_16x16x16f16(high, x[4 + e], sum[r], 0, 0, 0);
      }
    }
  }
  // Register e of lane (quad, i): row 4 * quad + e of the tile, token i.
  for (int r = 0; r < kRowTiles; ++r) {
    for (int e = 0; e < 4; ++e) {
      const int row = first_row + r * kMfmaSide + 4 * quad + e;
      if (row < F && i < tokens) y_TF[static_cast<int64_t>(i) * F + row] = sum[r][e];
    }
  }
}

// Grid: x = 256 rows, y = 16 tokens. D is a multiple of 32.
#define GEMM_MFMA_KERNEL(name, Format)                                                         \
  GRETA_KERNEL(64 * kGemmWaves)                                                                \
  name(const float* __restrict__ x_TD, const uint8_t* __restrict__ w_FD,                       \
       float* __restrict__ y_TF, int F, int D, int T) {                                        \
    const int first_row = (BlockX() * kGemmWaves + WaveId()) * kGemmRows;                      \
    if (first_row >= F) return;                                                                \
    const int64_t token = static_cast<int64_t>(BlockY()) * kMfmaSide;                          \
    const int tokens = T - token < kMfmaSide ? T - token : kMfmaSide;                          \
    GemmTile<Format>(x_TD + token * D, w_FD, y_TF + token * F, tokens, F, D, first_row);       \
  }

GEMM_MFMA_KERNEL(gemm_mfma_f32, F32)
GEMM_MFMA_KERNEL(gemm_mfma_f16, F16)
GEMM_MFMA_KERNEL(gemm_mfma_bf16, BF16)
GEMM_MFMA_KERNEL(gemm_mfma_q4_0, Q40)
GEMM_MFMA_KERNEL(gemm_mfma_q8_0, Q80)
GEMM_MFMA_KERNEL(gemm_mfma_q4_k, Q4K)
GEMM_MFMA_KERNEL(gemm_mfma_q5_k, Q5K)
GEMM_MFMA_KERNEL(gemm_mfma_q6_k, Q6K)
