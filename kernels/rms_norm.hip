// y = x / sqrt(mean(x^2) + eps) * weight, one workgroup a token.
#include "device.h"
#include "reduce.h"

constexpr int kNormWaves = 4;

GRETA_KERNEL(64 * kNormWaves)
rms_norm(const float* __restrict__ x_TD, const float* __restrict__ weight_D,
         float* __restrict__ y_TD, int D, float eps) {
  __shared__ float scratch[kNormWaves];
  const int64_t token = BlockX();
  const float* x_D = x_TD + token * D;
  float* y_D = y_TD + token * D;
  float squares = 0.0f;
  for (int i = ThreadId(); i < D; i += 64 * kNormWaves) {
    squares = __builtin_fmaf(x_D[i], x_D[i], squares);
  }
  const float mean = ReduceWorkgroup<Sum, kNormWaves>(squares, scratch) / static_cast<float>(D);
  // Both correctly rounded, so that the bits do not depend on v_rsq_f32.
  const float scale = 1.0f / __builtin_sqrtf(mean + eps);
  for (int i = ThreadId(); i < D; i += 64 * kNormWaves) y_D[i] = x_D[i] * scale * weight_D[i];
}
