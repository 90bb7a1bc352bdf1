// Decode attention, route manual/valu: fp32 products on the vector ALUs, split over S.
//
// The cache is cut into chunks of 256 slots; a workgroup turns a chunk of one kv head into a partial
// softmax (maximum, sum, weighted V) for a tile of that head's queries, and a second kernel merges
// the chunks in order. Chunks do not depend on the grid, so neither do the bits of the result.
//
// Within a chunk each of four waves owns 64 slots. 16 bytes a lane, kLanes lanes hold one row of H,
// so a wave-wide load covers 64 / kLanes slots, and kLanes loads cover the tile.
#include "device.h"
#include "numeric.h"
#include "reduce.h"

constexpr int kAttnWaves = 4;
constexpr int kTile = 64;
constexpr int kChunk = kAttnWaves * kTile;

template <class Cache, int kHeadDim>
struct RowLayout {
  static constexpr int kElements = 16 / sizeof(Cache);  // of a row, in one lane
  static constexpr int kLanes = kHeadDim / kElements;   // that hold a row
  static constexpr int kRowsPerLoad = kWaveSize / kLanes;
};

// 16 bytes of the cache as fp32.
GRETA_DEVICE void LoadRow(const float* p, float* x) {
  const float_x4 row = LoadAligned<float_x4, 16>(p);
  for (int e = 0; e < 4; ++e) x[e] = row[e];
}

GRETA_DEVICE void LoadRow(const half_t* p, float* x) {
  const half_x8 row = LoadAligned<half_x8, 16>(p);
  for (int e = 0; e < 8; ++e) x[e] = static_cast<float>(row[e]);
}

// Partial softmax of one wave's tile for kHeads queries.
template <class Cache, int kHeadDim, int kHeads>
struct TileAttention {
  using Row = RowLayout<Cache, kHeadDim>;
  float max[kHeads];
  float sum[kHeads];
  float out[kHeads][Row::kElements];  // each lane: its elements, over all slots of the tile

  // Scores of the tile: lane (row r, element group j) ends with that of slot j * kRowsPerLoad + r.
  GRETA_DEVICE void Scores(const float (&q)[kHeads][Row::kElements], const Cache* k_SH, int s0,
                           int S, float scale, float* score) {
    const int r = LaneId() / Row::kLanes, j = LaneId() % Row::kLanes;
#pragma unroll 8
    for (int i = 0; i < Row::kLanes; ++i) {
      const int slot = s0 + i * Row::kRowsPerLoad + r;
      // A slot past the end repeats the newest one: only live slots are ever read.
      const int64_t live = slot < S ? slot : S - 1;
      float k[Row::kElements];
      LoadRow(k_SH + live * kHeadDim + j * Row::kElements, k);
      for (int g = 0; g < kHeads; ++g) {
        float dot = 0.0f;
        for (int e = 0; e < Row::kElements; ++e) dot = __builtin_fmaf(q[g][e], k[e], dot);
        dot = ReduceLanes<Sum>(dot, Row::kLanes);
        score[g] = i == j ? dot * scale : score[g];
      }
    }
  }

  // Weights in `p` are laid out as Scores leaves them.
  GRETA_DEVICE void WeightedSum(const float* p, const Cache* v_SH, int s0, int S,
                                float (&out)[kHeads][Row::kElements]) {
    const int r = LaneId() / Row::kLanes, j = LaneId() % Row::kLanes;
#pragma unroll 8
    for (int i = 0; i < Row::kLanes; ++i) {
      const int slot = s0 + i * Row::kRowsPerLoad + r;
      const int64_t live = slot < S ? slot : S - 1;
      float v[Row::kElements];
      LoadRow(v_SH + live * kHeadDim + j * Row::kElements, v);
      // Masked here and not only through p = 0: zero times an infinity would be NaN.
      for (int e = 0; e < Row::kElements; ++e) v[e] = slot < S ? v[e] : 0.0f;
      for (int g = 0; g < kHeads; ++g) {
        const float weight = FromLane(p[g], r * Row::kLanes + i);
        for (int e = 0; e < Row::kElements; ++e) out[g][e] = __builtin_fmaf(weight, v[e], out[g][e]);
      }
    }
    for (int g = 0; g < kHeads; ++g) {
      for (int e = 0; e < Row::kElements; ++e) {
        out[g][e] = SumAcrossGroups(out[g][e], Row::kLanes);
      }
    }
  }

  GRETA_DEVICE TileAttention Of(const float (&q)[kHeads][Row::kElements], const Cache* k_SH,
                                const Cache* v_SH, int s0, int S, float scale) {
    TileAttention tile;
    for (int g = 0; g < kHeads; ++g) {
      tile.max[g] = -kInfinity;
      tile.sum[g] = 0.0f;
      for (int e = 0; e < Row::kElements; ++e) tile.out[g][e] = 0.0f;
    }
    if (s0 >= S) return tile;
    const int r = LaneId() / Row::kLanes, j = LaneId() % Row::kLanes;
    const bool live = s0 + j * Row::kRowsPerLoad + r < S;
    float p[kHeads];
    for (int g = 0; g < kHeads; ++g) p[g] = -kInfinity;
    Scores(q, k_SH, s0, S, scale, p);
    for (int g = 0; g < kHeads; ++g) {
      tile.max[g] = ReduceLanes<Max>(live ? p[g] : -kInfinity, kWaveSize);
      p[g] = live ? Exp(p[g] - tile.max[g]) : 0.0f;
      tile.sum[g] = ReduceLanes<Sum>(p[g], kWaveSize);
    }
    WeightedSum(p, v_SH, s0, S, tile.out);
    return tile;
  }
};

// The factor that moves a partial with maximum `from` to the maximum `to`. An empty partial has
// the maximum -infinity and sums of zero.
GRETA_DEVICE float Rescale(float from, float to) {
  return from == -kInfinity ? 0.0f : Exp(from - to);
}

// Grid: x = workgroups over chunks (any number), y = kv head * head tiles + tile.
// Partials: max_NC, sum_NC, out_NCH with max_chunks chunks a head.
template <class Cache, int kHeadDim, int kHeads>
GRETA_DEVICE void AttnChunks(const float* q_NH, const Cache* k_KSH, const Cache* v_KSH,
                             const int32_t* position_T, float* max_NC, float* sum_NC,
                             float* out_NCH, int64_t head_stride, int workgroups, int N, int K,
                             int max_chunks, float scale) {
  using Row = RowLayout<Cache, kHeadDim>;
  __shared__ float max_lds[kAttnWaves][kHeads];
  __shared__ float sum_lds[kAttnWaves][kHeads];
  __shared__ float out_lds[kAttnWaves][kHeads][kHeadDim];
  const int S = position_T[0] + 1;
  const int G = N / K, tiles = (G + kHeads - 1) / kHeads;
  const int kv_head = BlockY() / tiles, g0 = BlockY() % tiles * kHeads;
  const Cache* k_SH = k_KSH + kv_head * head_stride;
  const Cache* v_SH = v_KSH + kv_head * head_stride;
  const int j = LaneId() % Row::kLanes;
  float q[kHeads][Row::kElements];
  for (int g = 0; g < kHeads; ++g) {
    const int head = kv_head * G + (g0 + g < G ? g0 + g : G - 1);
    for (int e = 0; e < Row::kElements; ++e) q[g][e] = q_NH[head * kHeadDim + j * Row::kElements + e];
  }
  for (int chunk = BlockX(); chunk * kChunk < S; chunk += workgroups) {
    const int s0 = chunk * kChunk + WaveId() * kTile;
    const auto tile = TileAttention<Cache, kHeadDim, kHeads>::Of(q, k_SH, v_SH, s0, S, scale);
    for (int g = 0; g < kHeads; ++g) {
      if (LaneId() == 0) {
        max_lds[WaveId()][g] = tile.max[g];
        sum_lds[WaveId()][g] = tile.sum[g];
      }
      if (LaneId() < Row::kLanes) {
        for (int e = 0; e < Row::kElements; ++e) {
          out_lds[WaveId()][g][j * Row::kElements + e] = tile.out[g][e];
        }
      }
    }
    Barrier();
    for (int i = ThreadId(); i < kHeads * kHeadDim; i += 64 * kAttnWaves) {
      const int g = i / kHeadDim, h = i % kHeadDim;
      if (g0 + g >= G) break;
      float max = max_lds[0][g];
      for (int w = 1; w < kAttnWaves; ++w) max = __builtin_fmaxf(max, max_lds[w][g]);
      float sum = 0.0f, out = 0.0f;
      for (int w = 0; w < kAttnWaves; ++w) {
        const float factor = Rescale(max_lds[w][g], max);
        sum = __builtin_fmaf(factor, sum_lds[w][g], sum);
        out = __builtin_fmaf(factor, out_lds[w][g][h], out);
      }
      const int64_t at = static_cast<int64_t>(kv_head * G + g0 + g) * max_chunks + chunk;
      if (h == 0) max_NC[at] = max, sum_NC[at] = sum;
      out_NCH[at * kHeadDim + h] = out;
    }
    Barrier();
  }
}

#define ATTN_KERNEL(name, Cache, kHeadDim, kHeads)                                               \
  GRETA_KERNEL(64 * kAttnWaves)                                                                  \
  name(const float* __restrict__ q_NH, const Cache* __restrict__ k_KSH,                          \
       const Cache* __restrict__ v_KSH, const int32_t* __restrict__ position_T,                  \
       float* __restrict__ max_NC, float* __restrict__ sum_NC, float* __restrict__ out_NCH,      \
       int64_t head_stride, int workgroups, int N, int K, int max_chunks, float scale) {         \
    AttnChunks<Cache, kHeadDim, kHeads>(q_NH, k_KSH, v_KSH, position_T, max_NC, sum_NC, out_NCH, \
                                        head_stride, workgroups, N, K, max_chunks, scale);       \
  }

ATTN_KERNEL(attn_manual_valu_f32_h64_g1, float, 64, 1)
ATTN_KERNEL(attn_manual_valu_f32_h64_g4, float, 64, 4)
ATTN_KERNEL(attn_manual_valu_f32_h128_g1, float, 128, 1)
ATTN_KERNEL(attn_manual_valu_f32_h128_g4, float, 128, 4)
ATTN_KERNEL(attn_manual_valu_f16_h64_g1, half_t, 64, 1)
ATTN_KERNEL(attn_manual_valu_f16_h64_g4, half_t, 64, 4)
ATTN_KERNEL(attn_manual_valu_f16_h128_g1, half_t, 128, 1)
ATTN_KERNEL(attn_manual_valu_f16_h128_g4, half_t, 128, 4)

// Merges a head's chunks in order and divides by the softmax sum. Grid: x = query head.
GRETA_KERNEL(256)
attn_merge_chunks(const float* __restrict__ max_NC, const float* __restrict__ sum_NC,
                  const float* __restrict__ out_NCH, const int32_t* __restrict__ position_T,
                  float* __restrict__ y_NH, int H, int max_chunks) {
  const int chunks = position_T[0] / kChunk + 1;
  const int64_t first = static_cast<int64_t>(BlockX()) * max_chunks;
  float max = -kInfinity;
  for (int c = 0; c < chunks; ++c) max = __builtin_fmaxf(max, max_NC[first + c]);
  for (int h = ThreadId(); h < H; h += 256) {
    float sum = 0.0f, out = 0.0f;
    for (int c = 0; c < chunks; ++c) {
      const float factor = Rescale(max_NC[first + c], max);
      sum = __builtin_fmaf(factor, sum_NC[first + c], sum);
      out = __builtin_fmaf(factor, out_NCH[(first + c) * H + h], out);
    }
    y_NH[static_cast<int64_t>(BlockX()) * H + h] = out / sum;
  }
}
