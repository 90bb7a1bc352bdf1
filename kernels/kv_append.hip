// Stores k and v of new tokens in one layer's slab of the cache, [kv head][position][H].
#include "device.h"

constexpr int kAppendThreads = 256;

// `head_stride`: elements between kv heads of the slab. Grid: x = elements of k; y = token.
template <class Cache>
GRETA_DEVICE void KvAppend(const float* k_TKH, const float* v_TKH, const int32_t* position_T,
                           Cache* k_cache_KSH, Cache* v_cache_KSH, int64_t head_stride, int K,
                           int H) {
  const int element = BlockX() * kAppendThreads + ThreadId();
  if (element >= K * H) return;
  const int64_t token = BlockY();
  const int head = element / H, h = element - head * H;
  const int64_t slot = head * head_stride + static_cast<int64_t>(position_T[token]) * H + h;
  k_cache_KSH[slot] = static_cast<Cache>(k_TKH[token * K * H + element]);
  v_cache_KSH[slot] = static_cast<Cache>(v_TKH[token * K * H + element]);
}

#define KV_APPEND_KERNEL(name, Cache)                                                            \
  GRETA_KERNEL(kAppendThreads)                                                                   \
  name(const float* __restrict__ k_TKH, const float* __restrict__ v_TKH,                         \
       const int32_t* __restrict__ position_T, Cache* __restrict__ k_cache_KSH,                  \
       Cache* __restrict__ v_cache_KSH, int64_t head_stride, int K, int H) {                     \
    KvAppend<Cache>(k_TKH, v_TKH, position_T, k_cache_KSH, v_cache_KSH, head_stride, K, H);      \
  }

KV_APPEND_KERNEL(kv_append_f32, float)
KV_APPEND_KERNEL(kv_append_f16, half_t)
