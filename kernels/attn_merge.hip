// The merge of a row's chunks, the last step of every decode-attention route.
#include "attention.h"

constexpr int kMergeWaves = 4;
constexpr int kMergeThreads = kMergeWaves * kWaveSize;
constexpr int kMergeLanes = 16;                            // that take a chunk, 16 bytes each
constexpr int kMergeColumns = 4 * kMergeLanes;             // of the result, a workgroup
constexpr int kMergeGroups = kMergeThreads / kMergeLanes;  // of chunks, side by side
constexpr int kMergeBatch = 8;                             // chunks of a group in flight
constexpr int kMergeAtOnce = kMergeBatch * kMergeGroups;

// What a lane has of the kMergeBatch chunks that its group takes at a time, counted from `base`: its
// columns of all, maximum and sum of one (Own). Past `end` they are empty, and nothing is loaded.
struct MergeBatch {
  float max = -kInfinity;
  float sum = 0.0f;
  float_x4 out[kMergeBatch] = {};

  GRETA_DEVICE int ChunkOf(int base, int i) {
    return base + i * kMergeGroups + ThreadId() / kMergeLanes;
  }
  GRETA_DEVICE int Own() { return LaneId() % kMergeBatch; }

  __device__ MergeBatch(const float* max_C, const float* sum_C, const float* out_CH, int H, int h,
                        int base, int end) {
    const int own = ChunkOf(base, Own());
    if (own < end) max = max_C[own], sum = sum_C[own];
    for (int i = 0; i < kMergeBatch; ++i) {
      const int64_t c = ChunkOf(base, i);
      if (c < end) out[i] = LoadAligned<float_x4, 16>(out_CH + c * H + h);
    }
  }
};

// sum += the columns of chunks, each times the factor that lane i of the group has for chunk i.
// Loaded before the position was known, a chunk past the end may hold anything.
template <int i = 0>
GRETA_DEVICE void AddChunks(const MergeBatch& batch, float factor, int base, int end,
                            float_x4* sum) {
  if constexpr (i < kMergeBatch) {
    const float_x4 out = MergeBatch::ChunkOf(base, i) < end ? batch.out[i] : float_x4(0.0f);
    *sum = __builtin_elementwise_fma(float_x4(Dpp<kDppRowLane + i>(factor)), out, *sum);
    AddChunks<i + 1>(batch, factor, base, end, sum);
  }
}

// A fixed tree over the row's chunks, then divided by the softmax sum. The first of up to `chunks`
// are under way before the position says how many there are, and while their maximum is sought.
// Grid: x = query head * slices of kMergeColumns, y = row. H is a multiple of 4.
GRETA_KERNEL(kMergeThreads)
attn_merge_chunks(const int32_t* __restrict__ position_T, const float* __restrict__ max_TNC,
                  const float* __restrict__ sum_TNC, const float* __restrict__ out_TNCH, int N,
                  int H, int max_chunks, int chunks, int window, float* __restrict__ y_TNH) {
  __shared__ float_x4 parts[kMergeWaves][kMergeLanes];
  __shared__ float sums[kMergeWaves];
  __shared__ float scratch[kMergeWaves];
  const int64_t row = BlockY();
  const int slices = (H + kMergeColumns - 1) / kMergeColumns;
  const int64_t head = row * N + BlockX() / slices;
  const int own = BlockX() % slices * kMergeColumns + 4 * (ThreadId() % kMergeLanes);
  const int h = own < H ? own : H - 4;  // beyond the head: repeated, and not stored
  const float* max_C = max_TNC + head * max_chunks;
  const float* sum_C = sum_TNC + head * max_chunks;
  const float* out_CH = out_TNCH + head * max_chunks * H;
  MergeBatch batch(max_C, sum_C, out_CH, H, h, 0, chunks);
  const LiveSlots live = LiveSlots::At(position_T[row], window);
  const int begin = live.first / kChunk, end = (live.end - 1) / kChunk + 1;
  if (begin > 0) batch = MergeBatch(max_C, sum_C, out_CH, H, h, begin, end);
  const bool counts = LaneId() % kMergeLanes < kMergeBatch;  // other lanes repeat a chunk
  float max = MergeBatch::ChunkOf(begin, MergeBatch::Own()) < end ? batch.max : -kInfinity;
  for (int c = begin + kMergeAtOnce + ThreadId(); c < end; c += kMergeThreads) {
    max = __builtin_fmaxf(max, max_C[c]);
  }
  max = ReduceWorkgroup<Max, kMergeWaves>(max, scratch);
  float sum = 0.0f;
  float_x4 out = float_x4(0.0f);
  for (int base = begin;;) {
    const bool inside = MergeBatch::ChunkOf(base, MergeBatch::Own()) < end;
    const float factor = inside ? Rescale(batch.max, max) : 0.0f;
    sum = __builtin_fmaf(factor, inside && counts ? batch.sum : 0.0f, sum);
    AddChunks(batch, factor, base, end, &out);
    base += kMergeAtOnce;
    if (base >= end) break;
    batch = MergeBatch(max_C, sum_C, out_CH, H, h, base, end);
  }
  for (int e = 0; e < 4; ++e) out[e] = SumAcrossGroups<kMergeLanes>(out[e]);
  sum = ReduceLanes<Sum>(sum, kWaveSize);
  if (LaneId() < kMergeLanes) parts[WaveId()][LaneId()] = out, sums[WaveId()] = sum;
  Barrier();
  if (ThreadId() >= kMergeLanes || own >= H) return;
  for (int wave = 1; wave < kMergeWaves; ++wave) out += parts[wave][ThreadId()], sum += sums[wave];
  *reinterpret_cast<float_x4*>(y_TNH + head * H + h) = out / sum;
}
