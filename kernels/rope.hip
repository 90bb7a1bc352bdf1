// RoPE of q and k: pairs (2i, 2i + 1) turned by the angle of the token's position.
#include "device.h"

constexpr int kRopeThreads = 256;

// cos_sin_SH: at position s, cos and sin of pair i in elements 2i and 2i + 1.
// Grid: x = pairs of all q and k heads; y = token.
GRETA_KERNEL(kRopeThreads)
rope(const float* __restrict__ q_TNH, const float* __restrict__ k_TKH,
     const float* __restrict__ cos_sin_SH, const int32_t* __restrict__ position_T,
     float* __restrict__ q_rope_TNH, float* __restrict__ k_rope_TKH, int N, int K, int H) {
  const int pair = BlockX() * kRopeThreads + ThreadId();
  const int half = H / 2;
  if (pair >= (N + K) * half) return;
  const int head = pair / half, i = pair - head * half;
  const int64_t token = BlockY();
  const float* x_H = head < N ? q_TNH + (token * N + head) * H : k_TKH + (token * K + head - N) * H;
  float* y_H =
      head < N ? q_rope_TNH + (token * N + head) * H : k_rope_TKH + (token * K + head - N) * H;
  const float* turn = cos_sin_SH + static_cast<int64_t>(position_T[token]) * H + 2 * i;
  const float cosine = turn[0], sine = turn[1];
  const float a = x_H[2 * i], b = x_H[2 * i + 1];
  y_H[2 * i] = __builtin_fmaf(a, cosine, -(b * sine));
  y_H[2 * i + 1] = __builtin_fmaf(a, sine, b * cosine);
}
