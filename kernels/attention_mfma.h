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
  GRETA_DEVICE void Load(const half_t* p, half_t* x) {
    const half_x8 row = LoadAligned<half_x8, 16>(p);
    for (int e = 0; e < 8; ++e) x[e] = row[e];
  }
};
template <>
struct OperandsOf<fp8_t> : HalfOperands {
  GRETA_DEVICE void Load(const fp8_t* p, half_t* x) {
    float row[16];
    CacheType<fp8_t>::Widen(LoadAligned<uint_x4, 16>(p), row);
    for (int e = 0; e < 16; ++e) x[e] = static_cast<half_t>(row[e]);
  }
};
template <>
struct OperandsOf<bfloat_t> : BfloatOperands {
  GRETA_DEVICE void Load(const bfloat_t* p, int16_t* x) {
    typedef int16_t short_x8 __attribute__((ext_vector_type(8)));
    const short_x8 row = LoadAligned<short_x8, 16>(p);
    for (int e = 0; e < 8; ++e) x[e] = row[e];
  }
};

// Waves a SIMD that the results of a workgroup in LDS have room for, two at most. Asked for them
// the compiler keeps products in plain registers; it otherwise moves them to and from AccVGPRs.
constexpr int MfmaWaves(int heads, int head_dim) { return heads * head_dim < 2048 ? 2 : 1; }

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
  struct Shared {};
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

  // Scores of slots s0 + 16 * n + 4 * quad + 0..3 for the head of this column.
  __device__ float_x4 Scores(const Cache* k, const TileRows& rows, int n) const {
    const int64_t row = rows.Offset(kSide * n + Column());
    float_x4 score = float_x4(0.0f);
    for (int b = 0; b < kLoads; ++b) {
      const int piece = kQuads * b + Quad();
      Element x[kElements];
      Op::Load(k + row + (piece < kPieces ? piece : 0) * kElements, x);
      for (int f = 0; f < kFours; ++f) {
        const Four four = piece < kPieces ? Gather(x + 4 * f, 1) : Zero();
        score = Op::Multiply(four, q[b][f], score);
      }
    }
    return score;
  }

  // out += P V for the kPack subtiles from n on. A lane loads pieces of the four slots of its quad
  // and turns them into operands of four slots each; columns of another subtile count as zero.
  __device__ void WeightedSum(const Cache* v, const TileRows& rows, int s0, const LiveSlots& live,
                              int n, const Four* p, float_x4 (&out)[kWide][kElements]) const {
    const int member = Column() / kColumns, piece = Column() % kColumns;
    for (int wide = 0; wide < kWide; ++wide) {
      const int at = piece + kSide * wide;
      Element x[4][kElements];
      for (int r = 0; r < 4; ++r) {
        const int index = kSide * (n + member) + 4 * Quad() + r;
        Op::Load(v + rows.Offset(index) + (at < kPieces ? at : 0) * kElements, x[r]);
        // A dead slot's V is zero, not only its weight: 0 * infinity would be NaN.
        const bool keep = live.Has(s0 + index) && at < kPieces;
        for (int e = 0; e < kElements; ++e) x[r][e] = keep ? x[r][e] : Element{0};
      }
      for (int e = 0; e < kElements; ++e) {
        const Four four = Gather(&x[0][e], kElements);
        for (int m = 0; m < kPack; ++m) {
          const Four mine = kPack == 1 || m == member ? four : Zero();
          out[wide][e] = Op::Multiply(p[n + m], mine, out[wide][e]);
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
    for (int n = 0; n < kSubtiles; ++n) {
      score[n] = Scores(k, rows, n);
      for (int r = 0; r < 4; ++r) score[n][r] = SoftCap(score[n][r] * scale, softcap);
    }
    Four p[kSubtiles];
    float max, sum;
    Softmax(score, s0, live, p, &max, &sum);
    if (Quad() == 0 && Column() < kHeads) max_G[Column()] = max, sum_G[Column()] = sum;
    float_x4 out[kWide][kElements] = {};
    for (int n = 0; n < kSubtiles; n += kPack) WeightedSum(v, rows, s0, live, n, p, out);
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
