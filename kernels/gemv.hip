// y = W x for weights kept in their GGUF format, for up to three matrices that share x.
//
// A row's units of 32 weights are spread over `lanes` lanes of a wave (a power of two up to 64, as
// many as the row has units for), so a short row leaves room for several rows in one wave. Every
// lane then walks kRowsPerLane rows with the same slice of x in registers: x is read from cache once
// for that many rows. A workgroup is four independent waves; no LDS.
#include "device.h"
#include "reduce.h"
#include "weight_formats.h"

constexpr int kGemvWaves = 4;
constexpr int kRowsPerLane = 4;
constexpr int kBatch = 4;  // tokens that share a decoded weight in gemm_valu

struct GemvShape {
  int log2_lanes;  // of the lanes that share a row

  GRETA_DEVICE GemvShape For(int D) {
    const int units = D / kUnit;
    return {units >= kWaveSize ? 6 : 31 - __builtin_clz(units | 1)};
  }
  __device__ int Lanes() const { return 1 << log2_lanes; }
  // Rows side by side in a wave, then those of one workgroup.
  __device__ int Groups() const { return kWaveSize >> log2_lanes; }
  __device__ int Rows() const { return kGemvWaves * kRowsPerLane * Groups(); }
  __device__ int Workgroups(int F) const {
    return (F + Rows() - 1) >> (31 - __builtin_clz(Rows()));
  }
};

// y of kTokens tokens for this lane's rows. Every token's sum has the same order of operations
// whatever kTokens is, so that a batch of tokens gives each the bits it would get alone.
template <class Format, int kTokens>
GRETA_DEVICE void GemvRows(const float* x_TD, const uint8_t* w_FD, float* y_TF, int tokens, int F,
                           int D, int first_row, const GemvShape& shape) {
  const int lanes = shape.Lanes(), groups = shape.Groups();
  const int lane = LaneId() & (lanes - 1);
  const int group = LaneId() >> shape.log2_lanes;
  const int64_t row_bytes = RowBytes<Format>(D);
  const uint8_t* rows[kRowsPerLane];
  float_x4 sum[kTokens][kRowsPerLane];
  for (int r = 0; r < kRowsPerLane; ++r) {
    const int row = first_row + r * groups + group;
    // A row past the end repeats the last one and is not stored: no branch among the loads.
    rows[r] = w_FD + row_bytes * (row < F ? row : F - 1);
    for (int t = 0; t < kTokens; ++t) sum[t][r] = float_x4(0.0f);
  }
  const float* x_D[kTokens];  // likewise for tokens
  for (int t = 0; t < kTokens; ++t) {
    x_D[t] = x_TD + static_cast<int64_t>(t < tokens ? t : tokens - 1) * D;
  }
  for (int unit = lane; unit < D / kUnit; unit += lanes) {
    UnitWeights w[kRowsPerLane];
    for (int r = 0; r < kRowsPerLane; ++r) w[r] = Format::Decode(rows[r], unit);
    for (int t = 0; t < kTokens; ++t) {
      UnitWeights x;  // laid out as the weights are
      for (int i = 0; i < 4; ++i) {
        x.low[i] = LoadAligned<float_x4, 4>(x_D[t] + Format::LowStart(unit) + 4 * i);
        x.high[i] = LoadAligned<float_x4, 4>(x_D[t] + Format::HighStart(unit) + 4 * i);
      }
      for (int r = 0; r < kRowsPerLane; ++r) {
        for (int i = 0; i < 4; ++i) sum[t][r] = Fma(w[r].low[i], x.low[i], sum[t][r]);
        for (int i = 0; i < 4; ++i) sum[t][r] = Fma(w[r].high[i], x.high[i], sum[t][r]);
      }
    }
  }
  if constexpr (Format::kBlock == 1) {  // only unquantised rows can end inside a unit
    for (int i = D / kUnit * kUnit + lane; i < D; i += lanes) {
      for (int r = 0; r < kRowsPerLane; ++r) {
        const float w = Format::Element(rows[r], i);
        for (int t = 0; t < kTokens; ++t) {
          sum[t][r][0] = __builtin_fmaf(w, x_D[t][i], sum[t][r][0]);
        }
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRowsPerLane; ++r) {
      const float_x4 parts = sum[t][r];
      const float lane_sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
      const float total = ReduceLanes<Sum>(lane_sum, lanes);
      const int row = first_row + r * groups + group;
      if (lane == 0 && row < F && t < tokens) y_TF[static_cast<int64_t>(t) * F + row] = total;
    }
  }
}

// Grid: x = the workgroups of matrix 0, then of 1, then of 2; y = kTokens tokens.
template <class Format, int kTokens>
GRETA_DEVICE void Gemv(const float* x_TD, const uint8_t* w0_FD, const uint8_t* w1_FD,
                       const uint8_t* w2_FD, float* y0_TF, float* y1_TF, float* y2_TF, int F0,
                       int F1, int F2, int D, int T) {
  const GemvShape shape = GemvShape::For(D);
  const int blocks0 = shape.Workgroups(F0);
  const int blocks1 = shape.Workgroups(F1);
  // Selects, not branches: where the result goes is then not waited for before it is there.
  const bool third = BlockX() >= blocks0 + blocks1, second = !third && BlockX() >= blocks0;
  const int block = BlockX() - (third ? blocks0 + blocks1 : second ? blocks0 : 0);
  const uint8_t* w_FD = third ? w2_FD : second ? w1_FD : w0_FD;
  float* y_TF = third ? y2_TF : second ? y1_TF : y0_TF;
  const int F = third ? F2 : second ? F1 : F0;
  const int first_row = block * shape.Rows() + WaveId() * kRowsPerLane * shape.Groups();
  if (first_row >= F) return;
  const int64_t token = static_cast<int64_t>(BlockY()) * kTokens;
  const int tokens = T - token < kTokens ? T - token : kTokens;
  GemvRows<Format, kTokens>(x_TD + token * D, w_FD, y_TF + token * F, tokens, F, D, first_row,
                            shape);
}

// What the first loads need comes first: those arguments are preloaded.
#define GEMV_KERNEL(name, Format, kTokens)                                                      \
  GRETA_KERNEL(64 * kGemvWaves)                                                                 \
  name(const float* __restrict__ x_TD, const uint8_t* __restrict__ w0_FD,                       \
       const uint8_t* __restrict__ w1_FD, const uint8_t* __restrict__ w2_FD, int F0, int F1,    \
       int F2, int D, int T, float* __restrict__ y0_TF, float* __restrict__ y1_TF,              \
       float* __restrict__ y2_TF) {                                                             \
    Gemv<Format, kTokens>(x_TD, w0_FD, w1_FD, w2_FD, y0_TF, y1_TF, y2_TF, F0, F1, F2, D, T);    \
  }

GEMV_KERNEL(gemv_f32, F32, 1)
GEMV_KERNEL(gemv_f16, F16, 1)
GEMV_KERNEL(gemv_bf16, BF16, 1)
GEMV_KERNEL(gemv_q4_0, Q40, 1)
GEMV_KERNEL(gemv_q8_0, Q80, 1)
GEMV_KERNEL(gemv_q4_k, Q4K, 1)
GEMV_KERNEL(gemv_q5_k, Q5K, 1)
GEMV_KERNEL(gemv_q6_k, Q6K, 1)
GEMV_KERNEL(gemm_valu_f32, F32, kBatch)
GEMV_KERNEL(gemm_valu_f16, F16, kBatch)
GEMV_KERNEL(gemm_valu_bf16, BF16, kBatch)
GEMV_KERNEL(gemm_valu_q4_0, Q40, kBatch)
GEMV_KERNEL(gemm_valu_q8_0, Q80, kBatch)
GEMV_KERNEL(gemm_valu_q4_k, Q4K, kBatch)
GEMV_KERNEL(gemm_valu_q5_k, Q5K, kBatch)
GEMV_KERNEL(gemm_valu_q6_k, Q6K, kBatch)
