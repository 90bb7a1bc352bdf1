// The merge of a row's chunks, the last step of every decode-attention route.
#include "attention.h"

// In order, then divided by the softmax sum. Grid: x = query head, y = row.
GRETA_KERNEL(256)
attn_merge_chunks(const float* __restrict__ max_TNC, const float* __restrict__ sum_TNC,
                  const float* __restrict__ out_TNCH, const int32_t* __restrict__ position_T,
                  float* __restrict__ y_TNH, int N, int H, int max_chunks, int window) {
  const int64_t row = BlockY();
  const LiveSlots live = LiveSlots::At(position_T[row], window);
  const int begin = live.first / kChunk, end = (live.end - 1) / kChunk + 1;
  const int64_t first = (row * N + BlockX()) * max_chunks;
  float max = -kInfinity;
  for (int c = begin; c < end; ++c) max = __builtin_fmaxf(max, max_TNC[first + c]);
  for (int h = ThreadId(); h < H; h += 256) {
    float sum = 0.0f, out = 0.0f;
    for (int c = begin; c < end; ++c) {
      const float factor = Rescale(max_TNC[first + c], max);
      sum = __builtin_fmaf(factor, sum_TNC[first + c], sum);
      out = __builtin_fmaf(factor, out_TNCH[(first + c) * H + h], out);
    }
    y_TNH[(row * N + BlockX()) * H + h] = out / sum;
  }
}
