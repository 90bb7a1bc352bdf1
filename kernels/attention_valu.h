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
template <class Done, class T>
GRETA_DEVICE void After(Done& done, T& next) {
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
  static constexpr int kPairs = kElements / 2;  // a packed instruction takes two elements
  static constexpr int kLanes = RoundUpToPowerOfTwo(kHeadDim / kElements);
  static constexpr bool kPadded = kLanes * kElements != kHeadDim;
  static constexpr int kRowsPerLoad = kWaveSize / kLanes;
  static constexpr int kBatch = kLanes < 8 ? kLanes : 8;  // loads in flight
  static constexpr int kDppLanes = kLanes < 16 ? kLanes : 16;
  static constexpr int kGroup = kHeads < kDppLanes ? kHeads : kDppLanes;  // share a widened row
  static constexpr int kHeadLanes = kWaveSize / kHeads;   // that share a head in the softmax
  static_assert(kLanes % 4 == 0 && kHeadDim >= kTile, "weights lie where the result will");
  static_assert(kGroup <= kDppLanes, "a lane is left with the score of one head");
  static constexpr int kPieces = kHeadDim / kElements;    // lanes that a row is in
  struct Shared {
    // Of every lane the first four elements, then of every lane the next four: a load of 16 bytes
    // a lane then meets every bank once.
    alignas(16) float q[kHeads][kHeadDim];
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
    for (int i = 4 * ThreadId(); i < kHeads * kHeadDim; i += 4 * kWaveSize * kAttnWaves) {
      const int g = i / kHeadDim, h = i % kHeadDim;
      const int at = h % kElements * kPieces + h / kElements * 4;
      LoadQuery<4>(q_GH + (g < heads ? g : heads - 1) * kHeadDim, cos_sin_H, h, &shared.q[g][at]);
    }
    Barrier();
  }

  // RowOfLane, with its origin hidden: offsets from it then stay in the lane exchanges that use
  // them; hoisted out of the loop over chunks they would hold a register each.
  GRETA_DEVICE int RowInChunk() {
    int row = RowOfLane();
    __asm__ volatile("" : "+v"(row));
    return row;
  }

  // The lane's 16 bytes of slot s0 + index.
  GRETA_DEVICE uint_x4 LoadRow(const Cache* slab, const TileRows& rows, int index, bool keep) {
    const uint_x4 raw = LoadAligned<uint_x4, 16>(slab + rows.Offset(index) + Element());
    return keep ? raw : uint_x4(0);
  }

  GRETA_DEVICE void Widen(uint_x4 raw, float_x2 (&x)[kPairs]) {
    float row[kElements];
    CacheType<Cache>::Widen(raw, row);
    for (int p = 0; p < kPairs; ++p) x[p] = float_x2{row[2 * p], row[2 * p + 1]};
  }

  // Products of kGroup heads with the rows of a batch of K: score_GS[g][r * kLanes + i] becomes
  // that of row r of load i.
  GRETA_DEVICE void GroupScores(const float (*q_GH)[kHeadDim], uint_x4 (&raw)[kBatch], int first,
                                float (*score_GS)[kTile]) {
    float_x2 q[kGroup][kPairs];
    for (int g = 0; g < kGroup; ++g) {
      for (int p = 0; p < kPairs; p += 2) {
        const int at = 2 * p * kPieces + Element() / kElements * 4;
        const float_x4 four = LoadAligned<float_x4, 16>(&q_GH[g][at]);
        q[g][p] = four.lo, q[g][p + 1] = four.hi;
      }
    }
    float mine[kBatch];
    for (int i = 0; i < kBatch; ++i) {
      float_x2 k_row[kPairs];
      float score[kGroup];
      if (i > 0) After(mine[i - 1], raw[i]);
      Widen(raw[i], k_row);
      for (int g = 0; g < kGroup; ++g) {
        float_x2 dot = q[g][0] * k_row[0];
        for (int p = 1; p < kPairs; ++p) dot = __builtin_elementwise_fma(q[g][p], k_row[p], dot);
        score[g] = dot[0] + dot[1];
      }
      SumScattered<kDppLanes, kGroup>(score);
      if constexpr (kLanes > 16) score[0] += FromLane(score[0], LaneId() ^ 16);
      if constexpr (kLanes > 32) score[0] += FromLane(score[0], LaneId() ^ 32);
      mine[i] = score[0];
    }
    float* score_S = score_GS[FirstScattered<kDppLanes, kGroup>()] + RowOfLane() * kLanes + first;
    for (int i = 0; i < kBatch; i += 4) {
      *reinterpret_cast<float_x4*>(score_S + i) =
          float_x4{mine[i], mine[i + 1], mine[i + 2], mine[i + 3]};
    }
  }

  __device__ void Scores(const Shared& shared, const Cache* k, const TileRows& rows,
                         float (*score_GS)[kTile]) const {
#pragma unroll 1
    for (int first = 0; first < kLanes; first += kBatch) {
      uint_x4 raw[kBatch];
      const int row = RowInChunk() + first * kRowsPerLoad;
      for (int i = 0; i < kBatch; ++i) {
        raw[i] = LoadRow(k, rows, row + i * kRowsPerLoad, InHead());
      }
#pragma unroll 1
      for (int g = 0; g < kHeads; g += kGroup) {
        GroupScores(shared.q + g, raw, first, score_GS + g);
      }
    }
    WaveBarrier();
  }

  // Scores become weights. A lane has the kHeads scores of a head that follow each other as Scores
  // left them.
  __device__ void Softmax(int s0, const LiveSlots& live, float scale, float softcap,
                          float (*score_GS)[kTile], float* max_G, float* sum_G) const {
    const int g = LaneId() / kHeadLanes, place = LaneId() % kHeadLanes * kHeads;
    float* mine = &score_GS[g][place];
    float score[kHeads];
    float max = -kInfinity, sum = 0.0f;
    for (int i = 0; i < kHeads; ++i) {
      const int slot = s0 + (place + i) % kLanes * kRowsPerLoad + (place + i) / kLanes;
      score[i] = live.Has(slot) ? SoftCap(mine[i] * scale, softcap) : -kInfinity;
      max = __builtin_fmaxf(max, score[i]);
    }
    max = ReduceLanes<Max>(max, kHeadLanes);
    for (int i = 0; i < kHeads; ++i) {
      const float weight = Exp(score[i] - max);
      mine[i] = weight;
      sum += weight;
    }
    sum = ReduceLanes<Sum>(sum, kHeadLanes);
    if (LaneId() % kHeadLanes == 0) max_G[g] = max, sum_G[g] = sum;
    WaveBarrier();
  }

  // `p_GS` is laid out as Scores leaves it; a dead slot's V is zero, since 0 * infinity would be
  // NaN.
  __device__ void WeightedSum(const Cache* v, const TileRows& rows, int s0, const LiveSlots& live,
                              const float (*p_GS)[kTile], float_x2 (&out)[kHeads][kPairs]) const {
#pragma unroll 1
    for (int first = 0; first < kLanes; first += kBatch) {
      uint_x4 raw[kBatch];
      const int row = RowInChunk() + first * kRowsPerLoad;
      for (int i = 0; i < kBatch; ++i) {
        const int index = row + i * kRowsPerLoad;
        raw[i] = LoadRow(v, rows, index, InHead() && live.Has(s0 + index));
      }
      for (int two = 0; two < kBatch; two += 2) {
        int place = RowOfLane() * kLanes + first + two;
        After(out[0][0], place);
        float_x2 weight[kHeads];
        for (int g = 0; g < kHeads; ++g) weight[g] = LoadAligned<float_x2, 8>(&p_GS[g][place]);
        for (int i = 0; i < 2; ++i) {
          float_x2 v_row[kPairs];
          for (int g = 0; g < kHeads; ++g) After(out[g][kPairs - 1], raw[two + i]);
          Widen(raw[two + i], v_row);
          for (int g = 0; g < kHeads; ++g) {
            for (int p = 0; p < kPairs; ++p) {
              out[g][p] = __builtin_elementwise_fma(float_x2(weight[g][i]), v_row[p], out[g][p]);
            }
          }
        }
      }
    }
    for (int g = 0; g < kHeads; ++g) {
      for (int p = 0; p < kPairs; ++p) {
        if (g > 0) After(out[g - 1][p], out[g][p]);
        out[g][p] = float_x2{SumAcrossGroups<kLanes>(out[g][p][0]),
                             SumAcrossGroups<kLanes>(out[g][p][1])};
      }
    }
  }

  __device__ void Run(const Shared& shared, const Cache* k, const Cache* v, const TileRows& rows,
                      int s0, const LiveSlots& live, float scale, float softcap, float* max_G,
                      float* sum_G, float (&out_GH)[kHeads][kHeadDim]) const {
    // Scores and weights lie in the wave's own place for the result, until that is known.
    float(*p_GS)[kTile] = reinterpret_cast<float(*)[kTile]>(&out_GH[0][0]);
    float_x2 out[kHeads][kPairs] = {};
    Scores(shared, k, rows, p_GS);
    Softmax(s0, live, scale, softcap, p_GS, max_G, sum_G);
    WeightedSum(v, rows, s0, live, p_GS, out);
    WaveBarrier();
    if (RowOfLane() != 0 || !InHead()) return;
    for (int g = 0; g < kHeads; ++g) {
      for (int p = 0; p < kPairs; p += 2) {
        const float_x2 low = out[g][p], high = out[g][p + 1];
        *reinterpret_cast<float_x4*>(&out_GH[g][Element() + 2 * p]) =
            float_x4{low[0], low[1], high[0], high[1]};
      }
    }
  }
};

#endif  // GRETA_KERNELS_ATTENTION_VALU_H_
