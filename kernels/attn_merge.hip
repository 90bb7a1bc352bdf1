// The merge of a row's chunks, the last step of every decode-attention route.
#include "attention.h"

constexpr int kMergeWaves = 4;
constexpr int kMergeThreads = kMergeWaves * kWaveSize;
constexpr int kMergeChunks = 1024;  // whose factors are in LDS at a time

constexpr int kMergeBatch = 8;      // loads in flight

// What a round of chunks adds to elements `h` to h + 3 of the result: every `groups`-th chunk from
// `group` on. A load past the end repeats the last chunk and counts as zero.
GRETA_DEVICE float_x4 WeightedChunks(const float* factor, const float* out_CH, int chunks, int H,
                                     int group, int groups, int h) {
  float_x4 sum = float_x4(0.0f);
#pragma unroll 1
  for (int first = 0; first < chunks; first += kMergeBatch * groups) {
    float_x4 out[kMergeBatch];
    int chunk[kMergeBatch];
    for (int i = 0; i < kMergeBatch; ++i) {
      int step = i * groups;
      __asm__("" : "+s"(step));  // a scalar, not part of a 64-bit product with half an operand unset
      const int c = chunk[i] = first + step + group;
      const int64_t nearest = c < chunks ? c : chunks - 1;
      out[i] = LoadAligned<float_x4, 16>(out_CH + nearest * H + h);
    }
    for (int i = 0; i < kMergeBatch; ++i) {
      const int c = chunk[i];
      const float weight = factor[c < chunks ? c : 0];
      const float_x4 next = __builtin_elementwise_fma(float_x4(weight), out[i], sum);
      sum = c < chunks ? next : sum;
    }
  }
  return sum;
}

// A fixed tree over the row's chunks, then divided by the softmax sum.
// Grid: x = query head, y = row. H is a multiple of 4, at most 4 * kMergeThreads.
GRETA_KERNEL(kMergeThreads)
attn_merge_chunks(const float* __restrict__ max_TNC, const float* __restrict__ sum_TNC,
                  const float* __restrict__ out_TNCH, const int32_t* __restrict__ position_T,
                  float* __restrict__ y_TNH, int N, int H, int max_chunks, int window) {
  __shared__ float factor[kMergeChunks];
  __shared__ float_x4 parts[kMergeThreads];
  __shared__ float scratch[2][kMergeWaves];
  const int64_t row = BlockY();
  const LiveSlots live = LiveSlots::At(position_T[row], window);
  const int begin = live.first / kChunk, end = (live.end - 1) / kChunk + 1;
  const int64_t first = (row * N + BlockX()) * max_chunks;
  float max = -kInfinity;
  for (int c = begin + ThreadId(); c < end; c += kMergeThreads) {
    max = __builtin_fmaxf(max, max_TNC[first + c]);
  }
  max = ReduceWorkgroup<Max, kMergeWaves>(max, scratch[0]);
  const int lanes = H / 4, groups = kMergeThreads / lanes;
  const int group = ThreadId() / lanes, h = 4 * (ThreadId() % lanes);
  float sum = 0.0f;
  float_x4 out = float_x4(0.0f);
  for (int base = begin; base < end; base += kMergeChunks) {
    const int chunks = end - base < kMergeChunks ? end - base : kMergeChunks;
    for (int c = ThreadId(); c < chunks; c += kMergeThreads) {
      factor[c] = Rescale(max_TNC[first + base + c], max);
      sum = __builtin_fmaf(factor[c], sum_TNC[first + base + c], sum);
    }
    Barrier();
    if (group < groups) {
      out += WeightedChunks(factor, out_TNCH + (first + base) * H, chunks, H, group, groups, h);
    }
    Barrier();
  }
  sum = ReduceWorkgroup<Sum, kMergeWaves>(sum, scratch[1]);
  parts[ThreadId()] = out;
  Barrier();
  if (ThreadId() >= lanes) return;
  for (int g = 1; g < groups; ++g) out += parts[g * lanes + ThreadId()];
  *reinterpret_cast<float_x4*>(y_TNH + (row * N + BlockX()) * H + h) = out / sum;
}
