// Stores k and v of new tokens in their slots of one layer's cache.
#include "instance.h"

constexpr int kAppendThreads = 256;

// Grid: x = elements of k; y = row.
GRETA_KERNEL(kAppendThreads)
GRETA_CACHE_SYMBOL(kv_append)(const float* __restrict__ k_TKH, const float* __restrict__ v_TKH,
                              const int32_t* __restrict__ position_T,
                              const int32_t* __restrict__ sequence_T, KvView kv, int K, int H) {
  const int element = BlockX() * kAppendThreads + ThreadId();
  if (element >= K * H) return;
  const int64_t row = BlockY();
  const int head = element / H, h = element - head * H;
  const int64_t slot = kv.SlotOffset(sequence_T[row], head, position_T[row], H) + h;
  const int64_t from = row * K * H + element;
  StoreElement<GRETA_CACHE>(kv.k_PKJH, slot, k_TKH[from], ScaleOf<GRETA_CACHE>(kv.scales_2K, head));
  StoreElement<GRETA_CACHE>(kv.v_PKJH, slot, v_TKH[from],
                            ScaleOf<GRETA_CACHE>(kv.scales_2K, K + head));
}
