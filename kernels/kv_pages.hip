// Whole pages of the cache, in every layer: copied for copy-on-write, filled when they are freed.
#include "device.h"

constexpr int kPageThreads = 256;

// `words` (4 bytes each) is the size of a page; `layer_words` lies between layers.
// Grid: x = groups of 4 words, y = layer.
GRETA_KERNEL(kPageThreads)
kv_copy_page(uint32_t* __restrict__ k, uint32_t* __restrict__ v, int64_t layer_words, int64_t words,
             int64_t from_page, int64_t to_page) {
  const int64_t i = 4 * (static_cast<int64_t>(BlockX()) * kPageThreads + ThreadId());
  const int64_t base = BlockY() * layer_words;
  for (int64_t w = i; w < words && w < i + 4; ++w) {
    k[base + to_page * words + w] = k[base + from_page * words + w];
    v[base + to_page * words + w] = v[base + from_page * words + w];
  }
}

GRETA_KERNEL(kPageThreads)
kv_fill_page(uint32_t* __restrict__ k, uint32_t* __restrict__ v, int64_t layer_words, int64_t words,
             int64_t page, uint32_t pattern) {
  const int64_t i = 4 * (static_cast<int64_t>(BlockX()) * kPageThreads + ThreadId());
  const int64_t base = BlockY() * layer_words + page * words;
  for (int64_t w = i; w < words && w < i + 4; ++w) {
    k[base + w] = pattern;
    v[base + w] = pattern;
  }
}
