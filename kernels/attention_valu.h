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

// `next` is not looked at before `done` is known. What is to overlap is the loads of a batch: left
// alone the compiler widens all their rows first, and needs more registers than two waves have.
template <class T>
GRETA_DEVICE void After(float& done, T& next) {
  __asm__ volatile("" : "+v"(next), "+v"(done));
}

// Orders LDS accesses of one wave, whose lanes run in step.
GRETA_DEVICE void WaveBarrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

template <class Cache, int kHeadDim, int kHeads>
struct ValuTile {
  static constexpr int kElements = 16 / sizeof(Cache);
  static constexpr int kLanes = RoundUpToPowerOfTwo(kHeadDim / kElements);
  static constexpr bool kPadded = kLanes * kElements != kHeadDim;
  static constexpr int kRowsPerLoad = kWaveSize / kLanes;
  static constexpr int kBatch = kLanes < 8 ? kLanes : 8;  // loads in flight
  static constexpr int kGroup = kHeads < 4 ? kHeads : 4;  // heads that share a widened row
  static_assert(kLanes % 4 == 0 && kHeadDim >= kTile, "weights lie where the result will");
  struct Shared {
    float q[kHeads][kHeadDim];
  };

  // The lane's place: row r of a load, elements from j * kElements on.
  GRETA_DEVICE int RowOfLane() { return LaneId() / kLanes; }
  GRETA_DEVICE int ColumnOfLane() { return LaneId() % kLanes; }
  // Lanes beyond the head repeat its first elements, and count as zero.
  GRETA_DEVICE bool InHead() { return !kPadded || ColumnOfLane() * kElements < kHeadDim; }
  GRETA_DEVICE int Element() { return InHead() ? ColumnOfLane() * kElements : 0; }

  // All threads take part.
  __device__ void LoadQueries(const float* q_GH, const float* cos_sin_H, int heads,
                              Shared& shared) const {
    for (int i = 2 * ThreadId(); i < kHeads * kHeadDim; i += 2 * kWaveSize * kAttnWaves) {
      const int g = i / kHeadDim, h = i % kHeadDim;
      LoadQuery<2>(q_GH + (g < heads ? g : heads - 1) * kHeadDim, cos_sin_H, h, &shared.q[g][h]);
    }
    Barrier();
  }

  // The lane's 16 bytes of slot s0 + index.
  GRETA_DEVICE uint_x4 LoadRow(const Cache* slab, const TileRows& rows, int index, bool keep) {
    const uint_x4 raw = LoadAligned<uint_x4, 16>(slab + rows.Offset(index) + Element());
    return keep ? raw : uint_x4(0);
  }

  // Products of kGroup heads with the rows of a batch of K. score_GS[g][r * kLanes + i] becomes
  // that of row r of load i: lane g of the row writes it.
  GRETA_DEVICE void GroupScores(const float (*q_GH)[kHeadDim], uint_x4 (&raw)[kBatch], int first,
                                float (*score_GS)[kTile]) {
    float q[kGroup][kElements];
    for (int g = 0; g < kGroup; ++g) {
      for (int e = 0; e < kElements; ++e) q[g][e] = q_GH[g][Element() + e];
    }
    float mine = 0.0f;
    for (int i = 0; i < kBatch; ++i) {
      float k_row[kElements];
      After(mine, raw[i]);
      CacheType<Cache>::Widen(raw[i], k_row);
      for (int g = 0; g < kGroup; ++g) {
        float dot = 0.0f;
        for (int e = 0; e < kElements; ++e) dot = __builtin_fmaf(q[g][e], k_row[e], dot);
        dot = ReduceLanes<Sum>(dot, kLanes);
        mine = g == ColumnOfLane() ? dot : mine;
      }
      if (ColumnOfLane() < kGroup) {
        score_GS[ColumnOfLane()][RowOfLane() * kLanes + first + i] = mine;
      }
    }
  }

  __device__ void Scores(const Shared& shared, const Cache* k, const TileRows& rows,
                         float (*score_GS)[kTile]) const {
#pragma unroll 1
    for (int first = 0; first < kLanes; first += kBatch) {
      uint_x4 raw[kBatch];
      for (int i = 0; i < kBatch; ++i) {
        const int slot = (first + i) * kRowsPerLoad + RowOfLane();
        raw[i] = LoadRow(k, rows, slot, InHead());
      }
#pragma unroll 1
      for (int g = 0; g < kHeads; g += kGroup) {
        GroupScores(shared.q + g, raw, first, score_GS + g);
      }
    }
    WaveBarrier();
  }

  // `p_GS` is laid out as Scores leaves it; a dead slot's V is zero, since 0 * infinity would be
  // NaN.
  __device__ void WeightedSum(const Cache* v, const TileRows& rows, int s0, const LiveSlots& live,
                              const float (*p_GS)[kTile], float (&out)[kHeads][kElements]) const {
#pragma unroll 1
    for (int first = 0; first < kLanes; first += kBatch) {
      uint_x4 raw[kBatch];
      for (int i = 0; i < kBatch; ++i) {
        const int index = (first + i) * kRowsPerLoad + RowOfLane();
        raw[i] = LoadRow(v, rows, index, InHead() && live.Has(s0 + index));
      }
      for (int four = 0; four < kBatch; four += 4) {
        float_x4 weight[kHeads];
        for (int g = 0; g < kHeads; ++g) {
          const float* p = &p_GS[g][RowOfLane() * kLanes + first + four];
          weight[g] = LoadAligned<float_x4, 16>(p);
        }
        for (int i = 0; i < 4; ++i) {
          float v_row[kElements];
          for (int g = 0; g < kHeads; ++g) After(out[g][kElements - 1], raw[four + i]);
          CacheType<Cache>::Widen(raw[four + i], v_row);
          for (int g = 0; g < kHeads; ++g) {
            for (int e = 0; e < kElements; ++e) {
              out[g][e] = __builtin_fmaf(weight[g][i], v_row[e], out[g][e]);
            }
          }
        }
      }
    }
    for (int g = 0; g < kHeads; ++g) {
      for (int e = 0; e < kElements; ++e) {
        if (g > 0) After(out[g - 1][e], out[g][e]);
        out[g][e] = SumAcrossGroups<kLanes>(out[g][e]);
      }
    }
  }

  // Lane (r, j) has slot j * kRowsPerLoad + r.
  __device__ void Softmax(int s0, const LiveSlots& live, float scale, float softcap,
                          float (*score_GS)[kTile], float* max_G, float* sum_G) const {
    const bool alive = live.Has(s0 + ColumnOfLane() * kRowsPerLoad + RowOfLane());
#pragma unroll 1
    for (int g = 0; g < kHeads; ++g) {
      const float score = SoftCap(score_GS[g][LaneId()] * scale, softcap);
      const float max = ReduceLanes<Max>(alive ? score : -kInfinity, kWaveSize);
      const float p = alive ? Exp(score - max) : 0.0f;
      score_GS[g][LaneId()] = p;
      const float sum = ReduceLanes<Sum>(p, kWaveSize);
      if (LaneId() == 0) max_G[g] = max, sum_G[g] = sum;
    }
    WaveBarrier();
  }

  __device__ void Run(const Shared& shared, const Cache* k, const Cache* v, const TileRows& rows,
                      int s0, const LiveSlots& live, float scale, float softcap, float* max_G,
                      float* sum_G, float (&out_GH)[kHeads][kHeadDim]) const {
    // Scores and weights lie in the wave's own place for the result, until that is known.
    float(*p_GS)[kTile] = reinterpret_cast<float(*)[kTile]>(&out_GH[0][0]);
    float out[kHeads][kElements] = {};
    Scores(shared, k, rows, p_GS);
    Softmax(s0, live, scale, softcap, p_GS, max_G, sum_G);
    WeightedSum(v, rows, s0, live, p_GS, out);
    WaveBarrier();
    if (RowOfLane() != 0 || !InHead()) return;
    for (int g = 0; g < kHeads; ++g) {
      for (int e = 0; e < kElements; ++e) out_GH[g][Element() + e] = out[g][e];
    }
  }
};

#endif  // GRETA_KERNELS_ATTENTION_VALU_H_
