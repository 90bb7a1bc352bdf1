// A tile of decode attention on the vector ALUs, in fp32.
//
// A lane holds 16 bytes of a row: kLanes lanes hold the row, so a wave-wide load covers
// kRowsPerLoad slots, and kLanes loads cover the tile of 64.
#ifndef GRETA_KERNELS_ATTENTION_VALU_H_
#define GRETA_KERNELS_ATTENTION_VALU_H_

#include "attention.h"

constexpr int RoundUpToPowerOfTwo(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

template <class Cache, int kHeadDim, int kHeads>
struct ValuTile {
  static constexpr int kElements = 16 / sizeof(Cache);
  static constexpr int kLanes = RoundUpToPowerOfTwo(kHeadDim / kElements);
  static constexpr bool kPadded = kLanes * kElements != kHeadDim;
  static constexpr int kRowsPerLoad = kWaveSize / kLanes;
  float q[kHeads][kElements];

  // The lane's place: row r of a load, elements from j * kElements on.
  GRETA_DEVICE int RowOfLane() { return LaneId() / kLanes; }
  GRETA_DEVICE int ColumnOfLane() { return LaneId() % kLanes; }
  // Lanes beyond the head repeat its first elements, and count as zero.
  GRETA_DEVICE bool InHead() { return !kPadded || ColumnOfLane() * kElements < kHeadDim; }
  GRETA_DEVICE int Element() { return InHead() ? ColumnOfLane() * kElements : 0; }

  __device__ void LoadQueries(const float* q_GH, const float* cos_sin_H, int heads) {
    for (int g = 0; g < kHeads; ++g) {
      const float* q_H = q_GH + (g < heads ? g : heads - 1) * kHeadDim;
      LoadQuery<kElements>(q_H, cos_sin_H, Element(), q[g]);
    }
  }

  // The lane's 16 bytes of slot s0 + index as fp32.
  GRETA_DEVICE void LoadRow(const Cache* slab, const TileRows& rows, int index, bool keep,
                            float* x) {
    CacheType<Cache>::Load(slab + rows.Offset(index) + Element(), x);
    for (int e = 0; e < kElements; ++e) x[e] = keep ? x[e] : 0.0f;
  }

  // Lane (r, j) ends with the scores of slot j * kRowsPerLoad + r.
  __device__ void Scores(const Cache* k, const TileRows& rows, float* score) const {
    for (int g = 0; g < kHeads; ++g) score[g] = 0.0f;
#pragma unroll 8
    for (int i = 0; i < kLanes; ++i) {
      float k_row[kElements];
      LoadRow(k, rows, i * kRowsPerLoad + RowOfLane(), InHead(), k_row);
      for (int g = 0; g < kHeads; ++g) {
        float dot = 0.0f;
        for (int e = 0; e < kElements; ++e) dot = __builtin_fmaf(q[g][e], k_row[e], dot);
        dot = ReduceLanes<Sum>(dot, kLanes);
        score[g] = i == ColumnOfLane() ? dot : score[g];
      }
    }
  }

  // `p` is laid out as Scores leaves it; a dead slot's V is zero, since 0 * infinity would be NaN.
  __device__ void WeightedSum(const Cache* v, const TileRows& rows, int s0, const LiveSlots& live,
                              const float* p, float (&out)[kHeads][kElements]) const {
#pragma unroll 8
    for (int i = 0; i < kLanes; ++i) {
      const int index = i * kRowsPerLoad + RowOfLane();
      float v_row[kElements];
      LoadRow(v, rows, index, InHead() && live.Has(s0 + index), v_row);
      for (int g = 0; g < kHeads; ++g) {
        const float weight = FromLane(p[g], RowOfLane() * kLanes + i);
        for (int e = 0; e < kElements; ++e) {
          out[g][e] = __builtin_fmaf(weight, v_row[e], out[g][e]);
        }
      }
    }
    for (int g = 0; g < kHeads; ++g) {
      for (int e = 0; e < kElements; ++e) out[g][e] = SumAcrossGroups<kLanes>(out[g][e]);
    }
  }

  __device__ void Run(const Cache* k, const Cache* v, const TileRows& rows, int s0,
                      const LiveSlots& live, float scale, float softcap, float* max_G,
                      float* sum_G, float (&out_GH)[kHeads][kHeadDim]) const {
    const bool alive = live.Has(s0 + ColumnOfLane() * kRowsPerLoad + RowOfLane());
    float p[kHeads], out[kHeads][kElements] = {};
    Scores(k, rows, p);
    for (int g = 0; g < kHeads; ++g) {
      const float score = SoftCap(p[g] * scale, softcap);
      const float max = ReduceLanes<Max>(alive ? score : -kInfinity, kWaveSize);
      p[g] = alive ? Exp(score - max) : 0.0f;
      const float sum = ReduceLanes<Sum>(p[g], kWaveSize);
      if (LaneId() == 0) max_G[g] = max, sum_G[g] = sum;
    }
    WeightedSum(v, rows, s0, live, p, out);
    if (RowOfLane() != 0 || !InHead()) return;
    for (int g = 0; g < kHeads; ++g) {
      for (int e = 0; e < kElements; ++e) out_GH[g][Element() + e] = out[g][e];
    }
  }
};

#endif  // GRETA_KERNELS_ATTENTION_VALU_H_
