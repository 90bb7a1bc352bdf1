// SwiGLU and the residual sum: four elements a thread, the tail one by one.
#include "device.h"
#include "numeric.h"

constexpr int kElementwiseThreads = 256;

GRETA_KERNEL(kElementwiseThreads)
swiglu(const float* __restrict__ gate_TF, const float* __restrict__ up_TF,
       float* __restrict__ y_TF, int64_t count) {
  const int64_t i = 4 * (static_cast<int64_t>(BlockX()) * kElementwiseThreads + ThreadId());
  if (i + 4 <= count) {
    const float_x4 gate = LoadAligned<float_x4, 16>(gate_TF + i);
    const float_x4 up = LoadAligned<float_x4, 16>(up_TF + i);
    float_x4 y;
    for (int e = 0; e < 4; ++e) y[e] = Silu(gate[e]) * up[e];
    *reinterpret_cast<float_x4*>(y_TF + i) = y;
  } else {
    for (int64_t e = i; e < count; ++e) y_TF[e] = Silu(gate_TF[e]) * up_TF[e];
  }
}

GRETA_KERNEL(kElementwiseThreads)
residual_add(const float* __restrict__ a_TD, const float* __restrict__ b_TD,
             float* __restrict__ y_TD, int64_t count) {
  const int64_t i = 4 * (static_cast<int64_t>(BlockX()) * kElementwiseThreads + ThreadId());
  if (i + 4 <= count) {
    const float_x4 a = LoadAligned<float_x4, 16>(a_TD + i);
    const float_x4 b = LoadAligned<float_x4, 16>(b_TD + i);
    *reinterpret_cast<float_x4*>(y_TD + i) = a + b;
  } else {
    for (int64_t e = i; e < count; ++e) y_TD[e] = a_TD[e] + b_TD[e];
  }
}
