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

template <class Format>
GRETA_DEVICE void GemvRows(const float* x_D, const uint8_t* w_FD, float* y_F, int F, int D,
                           int first_row, const GemvShape& shape) {
  const int lanes = shape.Lanes(), groups = shape.Groups();
  const int lane = LaneId() & (lanes - 1);
  const int group = LaneId() >> shape.log2_lanes;
  const int64_t row_bytes = RowBytes<Format>(D);
  const uint8_t* rows[kRowsPerLane];
  float_x4 sum[kRowsPerLane];
  for (int r = 0; r < kRowsPerLane; ++r) {
    const int row = first_row + r * groups + group;
    // A row past the end repeats the last one and is not stored: no branch among the loads.
    rows[r] = w_FD + row_bytes * (row < F ? row : F - 1);
    sum[r] = float_x4(0.0f);
  }
  for (int unit = lane; unit < D / kUnit; unit += lanes) {
    float_x4 x_low[4], x_high[4];
    for (int i = 0; i < 4; ++i) {
      x_low[i] = LoadAligned<float_x4, 16>(x_D + Format::LowStart(unit) + 4 * i);
      x_high[i] = LoadAligned<float_x4, 16>(x_D + Format::HighStart(unit) + 4 * i);
    }
    for (int r = 0; r < kRowsPerLane; ++r) {
      const UnitWeights w = Format::Decode(rows[r], unit);
      for (int i = 0; i < 4; ++i) sum[r] = Fma(w.low[i], x_low[i], sum[r]);
      for (int i = 0; i < 4; ++i) sum[r] = Fma(w.high[i], x_high[i], sum[r]);
    }
  }
  if constexpr (Format::kBlock == 1) {  // only unquantised rows can end inside a unit
    for (int i = D / kUnit * kUnit + lane; i < D; i += lanes) {
      for (int r = 0; r < kRowsPerLane; ++r) {
        sum[r][0] = __builtin_fmaf(Format::Element(rows[r], i), x_D[i], sum[r][0]);
      }
    }
  }
  for (int r = 0; r < kRowsPerLane; ++r) {
    const float lane_sum = (sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]);
    const float total = ReduceLanes<Sum>(lane_sum, lanes);
    const int row = first_row + r * groups + group;
    if (lane == 0 && row < F) y_F[row] = total;
  }
}

// Grid: x = the workgroups of matrix 0, then of 1, then of 2; y = token.
template <class Format>
GRETA_DEVICE void Gemv(const float* x_TD, const uint8_t* w0_FD, const uint8_t* w1_FD,
                       const uint8_t* w2_FD, float* y0_TF, float* y1_TF, float* y2_TF, int F0,
                       int F1, int F2, int D) {
  const GemvShape shape = GemvShape::For(D);
  const int blocks0 = shape.Workgroups(F0);
  const int blocks1 = shape.Workgroups(F1);
  int block = BlockX();
  const uint8_t* w_FD = w0_FD;
  float* y_TF = y0_TF;
  int F = F0;
  if (block >= blocks0 + blocks1) {
    block -= blocks0 + blocks1;
    w_FD = w2_FD, y_TF = y2_TF, F = F2;
  } else if (block >= blocks0) {
    block -= blocks0;
    w_FD = w1_FD, y_TF = y1_TF, F = F1;
  }
  const int first_row = block * shape.Rows() + WaveId() * kRowsPerLane * shape.Groups();
  if (first_row >= F) return;
  const int64_t token = BlockY();
  GemvRows<Format>(x_TD + token * D, w_FD, y_TF + token * F, F, D, first_row, shape);
}

#define GEMV_KERNEL(name, Format)                                                               \
  GRETA_KERNEL(64 * kGemvWaves)                                                                 \
  name(const float* __restrict__ x_TD, const uint8_t* __restrict__ w0_FD,                       \
       const uint8_t* __restrict__ w1_FD, const uint8_t* __restrict__ w2_FD,                    \
       float* __restrict__ y0_TF, float* __restrict__ y1_TF, float* __restrict__ y2_TF, int F0, \
       int F1, int F2, int D) {                                                                 \
    Gemv<Format>(x_TD, w0_FD, w1_FD, w2_FD, y0_TF, y1_TF, y2_TF, F0, F1, F2, D);                \
  }

GEMV_KERNEL(gemv_f32, F32)
GEMV_KERNEL(gemv_f16, F16)
GEMV_KERNEL(gemv_bf16, BF16)
GEMV_KERNEL(gemv_q4_0, Q40)
GEMV_KERNEL(gemv_q8_0, Q80)
GEMV_KERNEL(gemv_q4_k, Q4K)
GEMV_KERNEL(gemv_q5_k, Q5K)
GEMV_KERNEL(gemv_q6_k, Q6K)
