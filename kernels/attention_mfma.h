// A tile of decode attention on the matrix cores: 16x16x16, 16-bit operands, fp32 accumulate.
//
// S^T = K Q^T: slots are rows and heads are columns, so a lane ends with one head's scores of four
// consecutive slots, which is just how P must lie to be the A operand of O = P V: no shuffle
// between the two products. Lane l is (quad l / 16, column l % 16) throughout.
#ifndef GRETA_KERNELS_ATTENTION_MFMA_H_
#define GRETA_KERNELS_ATTENTION_MFMA_H_

#include "attention.h"

typedef int16_t short_x4 __attribute__((ext_vector_type(4)));
constexpr int kSide = 16;
constexpr int kQuads = 4;

// Four 16-bit operands of one lane, and how a cache's bytes become them.
struct HalfOperands {
  typedef half_t Element;
  typedef half_x4 Four;
  GRETA_DEVICE Element Round(float x) { return static_cast<half_t>(x); }
  GRETA_DEVICE float Value(Element x) { return static_cast<float>(x); }
  GRETA_DEVICE float_x4 Multiply(Four a, Four b, float_x4 c) {
    return __builtin_amdgcn_mfma_f32_16x16x16f16(a, b, c, 0, 0, 0);
  }
};

struct BfloatOperands {
  typedef int16_t Element;
  typedef short_x4 Four;
  GRETA_DEVICE Element Round(float x) {
    return static_cast<int16_t>(CacheType<bfloat_t>::From(x).bits);
  }
  GRETA_DEVICE float Value(Element x) {
    return FloatOf(static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(x)) << 16));
  }
  GRETA_DEVICE float_x4 Multiply(Four a, Four b, float_x4 c) {
    return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a, b, c, 0, 0, 0);
  }
};

// fp8 is multiplied as f16, which holds every one of its numbers.
template <class Cache>
struct OperandsOf;
template <>
struct OperandsOf<half_t> : HalfOperands {
  GRETA_DEVICE void Widen(uint_x4 raw, half_t* x) {
    const half_x8 row = __builtin_bit_cast(half_x8, raw);
    for (int e = 0; e < 8; ++e) x[e] = row[e];
  }
};
template <>
struct OperandsOf<fp8_t> : HalfOperands {
  GRETA_DEVICE void Widen(uint_x4 raw, half_t* x) {
    float row[16];
    CacheType<fp8_t>::Widen(raw, row);
    for (int e = 0; e < 16; e += 2) {  // exact, however it rounds: two at a time
      const auto pair = __builtin_amdgcn_cvt_pkrtz(row[e], row[e + 1]);
      x[e] = pair[0], x[e + 1] = pair[1];
    }
  }
};
template <>
struct OperandsOf<bfloat_t> : BfloatOperands {
  GRETA_DEVICE void Widen(uint_x4 raw, int16_t* x) {
    typedef int16_t short_x8 __attribute__((ext_vector_type(8)));
    const short_x8 row = __builtin_bit_cast(short_x8, raw);
    for (int e = 0; e < 8; ++e) x[e] = row[e];
  }
};

// Waves a SIMD that the results of a workgroup in LDS have room for, two at most. Asked for them
// the compiler keeps products in plain registers; it otherwise moves them to and from AccVGPRs.
constexpr int MfmaWaves(int heads, int head_dim) { return heads * head_dim < 2048 ? 2 : 1; }

// Steps, `most` or fewer, whose loads fill 64 registers as 16-bit operands: `each` a step.
template <class Cache>
constexpr int StepsInFlight(int most, int each) {
  while (most > 1 && most * each > 8 * static_cast<int>(sizeof(Cache))) most /= 2;
  return most;
}

// kHeads (at most 16) is how many of the 16 columns are kept.
template <class Cache, int kHeadDim, int kHeads>
struct MfmaTile {
  using Op = OperandsOf<Cache>;
  using Element = typename Op::Element;
  using Four = typename Op::Four;
  static constexpr int kElements = 16 / sizeof(Cache);     // 16 bytes of a row
  static constexpr int kPieces = kHeadDim / kElements;     // that make the row
  static constexpr int kFours = kElements / 4;             // operands in a piece
  static constexpr int kLoads = (kPieces + kQuads - 1) / kQuads;  // for Q and K: a quad, a piece
  // For V: the 16 columns of a quad hold kPack rows of kColumns pieces, or kWide pieces each.
  static constexpr int kColumns = kPieces <= 4 ? 4 : kPieces <= 8 ? 8 : 16;
  static constexpr int kPack = kSide / kColumns;
  static constexpr int kWide = (kPieces + kSide - 1) / kSide;
  static constexpr int kSubtiles = kTile / kSide;
  static constexpr int kPacks = kSubtiles / kPack;
  static constexpr int kKeysAtOnce = StepsInFlight<Cache>(kSubtiles, kLoads);
  static constexpr int kPacksAtOnce = StepsInFlight<Cache>(kPacks, 4 * kWide);
  struct Shared {};
  struct Values {  // of one pack of subtiles: pieces of the four slots of a quad
    uint_x4 raw[kWide][4];
  };
  Four q[kLoads][kFours];

  GRETA_DEVICE int Quad() { return LaneId() / kSide; }
  GRETA_DEVICE int Column() { return LaneId() % kSide; }
  GRETA_DEVICE Four Gather(const Element* x, int stride) {
    return Four{x[0], x[stride], x[2 * stride], x[3 * stride]};
  }
  GRETA_DEVICE Four Zero() { return Four{0, 0, 0, 0}; }

  // Columns beyond the heads, and pieces beyond the row, are zero.
  __device__ void LoadQueries(const float* q_GH, const float* cos_sin_H, int heads, Shared&) {
    for (int b = 0; b < kLoads; ++b) {
      const int piece = kQuads * b + Quad();
      const bool keep = Column() < heads && piece < kPieces;
      float x[kElements];
      Element rounded[kElements];
      const float* q_H = q_GH + (Column() < heads ? Column() : 0) * kHeadDim;
      LoadQuery<kElements>(q_H, cos_sin_H, (keep ? piece : 0) * kElements, x);
      for (int e = 0; e < kElements; ++e) rounded[e] = Op::Round(keep ? x[e] : 0.0f);
      for (int f = 0; f < kFours; ++f) q[b][f] = Gather(rounded + 4 * f, 1);
    }
  }

  GRETA_DEVICE uint_x4 LoadPiece(const Cache* slab, int64_t row, int piece) {
    return LoadAligned<uint_x4, 16>(slab + row + (piece < kPieces ? piece : 0) * kElements);
  }

  // score[n]: of slots s0 + 16 * n + 4 * quad + 0..3, for the head of this column.
  __device__ void Scores(const Cache* k, const TileRows& rows, float_x4 (&score)[kSubtiles]) const {
    for (int first = 0; first < kSubtiles; first += kKeysAtOnce) {
      uint_x4 raw[kKeysAtOnce][kLoads];
      for (int n = 0; n < kKeysAtOnce; ++n) {
        const int64_t row = rows.Offset(kSide * (first + n) + Column());
        for (int b = 0; b < kLoads; ++b) raw[n][b] = LoadPiece(k, row, kQuads * b + Quad());
      }
      InFlight();
      for (int n = 0; n < kKeysAtOnce; ++n) {
        float_x4& sum = score[first + n] = float_x4(0.0f);
        for (int b = 0; b < kLoads; ++b) {
          const bool inside = kQuads * b + Quad() < kPieces;
          Element x[kElements];
          Op::Widen(raw[n][b], x);
          for (int f = 0; f < kFours; ++f) {
            sum = Op::Multiply(inside ? Gather(x + 4 * f, 1) : Zero(), q[b][f], sum);
          }
        }
      }
    }
  }

  // The slot of a pack's row r, counted from s0, that this lane loads.
  GRETA_DEVICE int SlotOfValue(int pack, int r) {
    return kSide * (kPack * pack + Column() / kColumns) + 4 * Quad() + r;
  }

  __device__ void LoadValues(const Cache* v, const TileRows& rows, int first,
                             Values (&values)[kPacksAtOnce]) const {
    for (int i = 0; i < kPacksAtOnce; ++i) {
      for (int r = 0; r < 4; ++r) {
        const int64_t row = rows.Offset(SlotOfValue(first + i, r));
        for (int wide = 0; wide < kWide; ++wide) {
          values[i].raw[wide][r] = LoadPiece(v, row, Column() % kColumns + kSide * wide);
        }
      }
    }
    InFlight();
  }

  // out += P V for a pack of subtiles. A lane turns the pieces of its four slots into operands of
  // four slots each; columns of another subtile count as zero.
  __device__ void WeightedSum(const Values& values, int s0, const LiveSlots& live, int pack,
                              const Four* p, float_x4 (&out)[kWide][kElements]) const {
    for (int wide = 0; wide < kWide; ++wide) {
      const int at = Column() % kColumns + kSide * wide;
      Element x[4][kElements];
      for (int r = 0; r < 4; ++r) {
        // A dead slot's V is zero, not only its weight: 0 * infinity would be NaN.
        const bool keep = live.Has(s0 + SlotOfValue(pack, r)) && at < kPieces;
        Op::Widen(keep ? values.raw[wide][r] : uint_x4(0), x[r]);
      }
      for (int e = 0; e < kElements; ++e) {
        const Four four = Gather(&x[0][e], kElements);
        for (int m = 0; m < kPack; ++m) {
          const Four mine = kPack == 1 || m == Column() / kColumns ? four : Zero();
          out[wide][e] = Op::Multiply(p[kPack * pack + m], mine, out[wide][e]);
        }
      }
    }
  }

  // Rounds the weights of this column's head and sums what was rounded.
  __device__ void Softmax(const float_x4* score, int s0, const LiveSlots& live, Four* p, float* max,
                          float* sum) const {
    *max = -kInfinity;
    for (int n = 0; n < kSubtiles; ++n) {
      for (int r = 0; r < 4; ++r) {
        const bool alive = live.Has(s0 + kSide * n + 4 * Quad() + r);
        *max = __builtin_fmaxf(*max, alive ? score[n][r] : -kInfinity);
      }
    }
    *max = __builtin_fmaxf(*max, FromLane(*max, LaneId() ^ 16));
    *max = __builtin_fmaxf(*max, FromLane(*max, LaneId() ^ 32));
    *sum = 0.0f;
    for (int n = 0; n < kSubtiles; ++n) {
      for (int r = 0; r < 4; ++r) {
        const bool alive = live.Has(s0 + kSide * n + 4 * Quad() + r);
        const Element weight = Op::Round(alive ? Exp(score[n][r] - *max) : 0.0f);
        p[n][r] = weight;
        *sum += Op::Value(weight);
      }
    }
    *sum = SumAcrossGroups<kSide>(*sum);
  }

  __device__ void Run(const Shared&, const Cache* k, const Cache* v, const TileRows& rows, int s0,
                      const LiveSlots& live, float scale, float softcap, float* max_G,
                      float* sum_G, float (&out_GH)[kHeads][kHeadDim]) const {
    float_x4 score[kSubtiles];
    Scores(k, rows, score);
    Values values[kPacksAtOnce];
    LoadValues(v, rows, 0, values);  // under way while weights are computed
    for (int n = 0; n < kSubtiles; ++n) {
      for (int r = 0; r < 4; ++r) score[n][r] = SoftCap(score[n][r] * scale, softcap);
    }
    Four p[kSubtiles];
    float max, sum;
    Softmax(score, s0, live, p, &max, &sum);
    if (Quad() == 0 && Column() < kHeads) max_G[Column()] = max, sum_G[Column()] = sum;
    float_x4 out[kWide][kElements] = {};
    for (int first = 0; first < kPacks; first += kPacksAtOnce) {
      if (first > 0) LoadValues(v, rows, first, values);
      for (int i = 0; i < kPacksAtOnce; ++i) {
        WeightedSum(values[i], s0, live, first + i, p, out);
      }
    }
    // Row 4 * quad + r of O is a head; columns of the pack's members add up.
    for (int wide = 0; wide < kWide; ++wide) {
      const int at = Column() % kColumns + kSide * wide;
      for (int e = 0; e < kElements; ++e) {
        for (int r = 0; r < 4; ++r) {
          float x = out[wide][e][r];
          if constexpr (kColumns <= 4) x += FromLane(x, LaneId() ^ 4);
          if constexpr (kColumns <= 8) x += Dpp<kDppXor8>(x);
          const int head = 4 * Quad() + r;
          if (head < kHeads && Column() < kColumns && at < kPieces) {
            out_GH[head][at * kElements + e] = x;
          }
        }
      }
    }
  }
};

#endif  // GRETA_KERNELS_ATTENTION_MFMA_H_
