// The index of the largest logit: the lowest index of a tie, the first NaN if there is one.
#include "device.h"

constexpr int kArgmaxWaves = 16;

// Larger for a larger x; a NaN is above everything, and -0 equals +0. Ties go to the lower index.
GRETA_DEVICE uint64_t RankOf(float x, int index) {
  const uint32_t bits = static_cast<uint32_t>(BitsOf(x + 0.0f));
  uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  if (x != x) order = 0xffffffffu;
  return (static_cast<uint64_t>(order) << 32) | ~static_cast<uint32_t>(index);
}

GRETA_DEVICE uint64_t RankFromLane(uint64_t rank, int lane) {
  const uint32_t low = __builtin_amdgcn_ds_bpermute(lane * 4, static_cast<int>(rank));
  const uint32_t high = __builtin_amdgcn_ds_bpermute(lane * 4, static_cast<int>(rank >> 32));
  return (static_cast<uint64_t>(high) << 32) | low;
}

GRETA_DEVICE uint64_t Larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

// Grid: x = token.
GRETA_KERNEL(64 * kArgmaxWaves)
argmax(const float* __restrict__ logits_TV, int32_t* __restrict__ top1_T, int V) {
  __shared__ uint64_t best_of_wave[kArgmaxWaves];
  const int64_t token = BlockX();
  const float* logits_V = logits_TV + token * V;
  uint64_t best = 0;
  for (int i = ThreadId(); i < V; i += 64 * kArgmaxWaves) {
    best = Larger(best, RankOf(logits_V[i], i));
  }
  for (int step = 1; step < kWaveSize; step *= 2) {
    best = Larger(best, RankFromLane(best, LaneId() ^ step));
  }
  if (LaneId() == 0) best_of_wave[WaveId()] = best;
  Barrier();
  if (ThreadId() != 0) return;
  for (int wave = 0; wave < kArgmaxWaves; ++wave) best = Larger(best, best_of_wave[wave]);
  top1_T[token] = static_cast<int32_t>(~static_cast<uint32_t>(best));
}
