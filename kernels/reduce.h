// Reductions over lanes and waves in a fixed order, so that the sum's bits are determined.
#ifndef GRETA_KERNELS_REDUCE_H_
#define GRETA_KERNELS_REDUCE_H_

#include "device.h"

struct Sum {
  GRETA_DEVICE float Combine(float a, float b) { return a + b; }
};

// fmax drops a NaN; a caller that must keep it carries it in the sum it takes beside the maximum.
struct Max {
  GRETA_DEVICE float Combine(float a, float b) { return __builtin_fmaxf(a, b); }
};

// Combines aligned groups of `lanes` (a power of two, uniform); every lane gets its group's result.
//
// Steps 1 to 8 are lane exchanges inside a row of 16 (DPP); the mirrors reach the partner group,
// whose lanes already agree. Steps 16 and 32 cross rows.
template <class Op>
GRETA_DEVICE float ReduceLanes(float x, int lanes) {
  if (lanes > 1) x = Op::Combine(x, Dpp<kDppXor1>(x));
  if (lanes > 2) x = Op::Combine(x, Dpp<kDppXor2>(x));
  if (lanes > 4) x = Op::Combine(x, Dpp<kDppHalfMirror>(x));
  if (lanes > 8) x = Op::Combine(x, Dpp<kDppMirror>(x));
  if (lanes > 16) x = Op::Combine(x, FromLane(x, LaneId() ^ 16));
  if (lanes > 32) x = Op::Combine(x, FromLane(x, LaneId() ^ 32));
  return x;
}

// Sums lanes l, l + kStride, l + 2 * kStride, ... (a power of two from 4); all get the sum.
template <int kStride>
GRETA_DEVICE float SumAcrossGroups(float x) {
  if constexpr (kStride <= 4) x += FromLane(x, LaneId() ^ 4);
  if constexpr (kStride <= 8) {
    x += Dpp<kDppXor8>(x);
    __asm__("" : "+v"(x));  // one instruction; paired with another's it would be three
  }
  if constexpr (kStride <= 16) x += FromLane(x, LaneId() ^ 16);
  if constexpr (kStride <= 32) x += FromLane(x, LaneId() ^ 32);
  return x;
}

// Sums each of kCount values over aligned groups of kLanes lanes, both powers of two up to 16, and
// leaves a lane kCount / kLanes of the sums (one at least), from FirstScattered on: a lane hands on
// the half of its values that it does not keep, so there are fewer exchanges than values.
template <int kLanes, int kCount>
GRETA_DEVICE void SumScattered(float* x) {
  if constexpr (kLanes > 1) {
    constexpr int kPattern = kLanes == 16  ? kDppMirror
                             : kLanes == 8 ? kDppHalfMirror
                             : kLanes == 4 ? kDppXor2
                                           : kDppXor1;
    constexpr int kHalf = kCount > 1 ? kCount / 2 : 1;
    const bool upper = kCount > 1 && LaneId() & kLanes / 2;
    for (int i = 0; i < kHalf; ++i) {
      const float other = kCount > 1 ? x[kCount - kHalf + i] : x[i];
      const float keep = upper ? other : x[i], give = upper ? x[i] : other;
      x[i] = keep + Dpp<kPattern>(give);
    }
    SumScattered<kLanes / 2, kHalf>(x);
  }
}

template <int kLanes, int kCount>
GRETA_DEVICE int FirstScattered() {
  return LaneId() % kLanes * kCount / kLanes;
}

// Combines a workgroup of kWaves waves: lanes first, then waves in order. All threads get the result.
template <class Op, int kWaves>
GRETA_DEVICE float ReduceWorkgroup(float x, float* scratch_lds) {
  x = ReduceLanes<Op>(x, kWaveSize);
  if (LaneId() == 0) scratch_lds[WaveId()] = x;
  Barrier();
  float total = scratch_lds[0];
  for (int wave = 1; wave < kWaves; ++wave) total = Op::Combine(total, scratch_lds[wave]);
  return total;
}

#endif  // GRETA_KERNELS_REDUCE_H_
