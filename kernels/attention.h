// What every decode-attention route shares: arguments, live slots, addresses of a tile's rows, the
// partial softmax of a chunk and its merge.
//
// The cache is cut into chunks of 256 slots at fixed positions; a workgroup turns a chunk of one kv
// head into a partial softmax (maximum, sum, weighted V) for a tile of that head's queries, and
// attn_merge_chunks merges the chunks in order. Chunks do not depend on the grid, so neither do the
// bits of the result. Within a chunk each of four waves owns a tile of 64 slots.
#ifndef GRETA_KERNELS_ATTENTION_H_
#define GRETA_KERNELS_ATTENTION_H_

#include "device.h"
#include "kv_view.h"
#include "numeric.h"
#include "reduce.h"

constexpr int kAttnWaves = 4;
constexpr int kTile = 64;
constexpr int kChunk = kAttnWaves * kTile;

// Mirrored by hip_engine/arguments.py. A row is a query token: of its sequence, at its position.
// Kernels take position_T and sequence_T before it: arguments that are in registers when a wave
// starts (-amdgpu-kernarg-preload-count) must come first and be plain.
struct AttnArgs {
  const float* q_TNH;         // after RoPE in manual, before it in fused
  const float* k_TKH;         // fused only, with the three below
  const float* v_TKH;
  const float* cos_sin_SH;
  void* k_append_PKJH;
  void* v_append_PKJH;
  KvView kv;
  float* max_TNC;
  float* sum_TNC;
  float* out_TNCH;
  int32_t workgroups;  // over chunks; any number
  int32_t N, K;
  int32_t max_chunks;
  int32_t window;  // newest slots that are seen; 0: all
  float scale;
  float softcap;  // 0: none
};

// Slots that the query may see: [first, end).
struct LiveSlots {
  int first, end;

  GRETA_DEVICE LiveSlots At(int position, int window) {
    const int end = position + 1;
    return {window > 0 && end > window ? end - window : 0, end};
  }
  __device__ bool Has(int slot) const { return slot >= first && slot < end; }
  // The nearest live slot: a load for a dead one repeats it, so that only live slots are read.
  __device__ int Nearest(int slot) const {
    return slot < first ? first : slot < end ? slot : end - 1;
  }
};

// Where the rows of a tile are: lane l knows slot s0 + l, and every lane can ask for any of them.
struct TileRows {
  int64_t own;

  GRETA_DEVICE TileRows At(const KvView& kv, int sequence, int kv_head, int s0,
                           const LiveSlots& live, int H) {
    return {kv.SlotOffset(sequence, kv_head, live.Nearest(s0 + LaneId()), H)};
  }
  __device__ int64_t Offset(int index) const {
    const int32_t low = __builtin_amdgcn_ds_bpermute(index * 4, static_cast<int32_t>(own));
    const int32_t high = __builtin_amdgcn_ds_bpermute(index * 4, static_cast<int32_t>(own >> 32));
    return (static_cast<int64_t>(high) << 32) | static_cast<uint32_t>(low);
  }
};

// `count` elements of a query from `element` on, turned by RoPE if `cos_sin` is given.
template <int count>
GRETA_DEVICE void LoadQuery(const float* q_H, const float* cos_sin_H, int element, float* x) {
  for (int e = 0; e < count; ++e) x[e] = q_H[element + e];
  if (cos_sin_H == nullptr) return;
  for (int e = 0; e < count; e += 2) {
    const float cosine = cos_sin_H[element + e], sine = cos_sin_H[element + e + 1];
    const float a = x[e], b = x[e + 1];
    x[e] = __builtin_fmaf(a, cosine, -(b * sine));
    x[e + 1] = __builtin_fmaf(a, sine, b * cosine);
  }
}

// cap * tanh(score / cap), to 4 roundings of cap; the score itself without a cap.
GRETA_DEVICE float SoftCap(float score, float cap) {
  if (cap == 0.0f) return score;
  const float e = Exp(-2.0f * __builtin_fabsf(score / cap));
  return __builtin_copysignf((1.0f - e) / (1.0f + e), score) * cap;
}

// The factor that moves a partial with maximum `from` to the maximum `to`: 0 for an empty one,
// whose maximum is -infinity.
GRETA_DEVICE float Rescale(float from, float to) { return Exp(from - to); }

// The four waves' tiles of a chunk.
template <int kHeads, int kHeadDim>
struct ChunkScratch {
  float max[kAttnWaves][kHeads];
  float sum[kAttnWaves][kHeads];
  alignas(16) float out[kAttnWaves][kHeads][kHeadDim];
};

// Merges the waves' tiles in order and stores the chunk's partial for heads [head0, head0 + heads).
// A lane has four elements of a head, and four lanes share the factors of the four waves.
template <int kHeads, int kHeadDim>
GRETA_DEVICE void StoreChunk(const ChunkScratch<kHeads, kHeadDim>& waves, const AttnArgs& args,
                             int64_t row, int head0, int heads, int chunk, float v_scale) {
  static_assert(kHeadDim % 16 == 0 && kAttnWaves == 4, "four lanes have the same head");
  for (int i = 4 * ThreadId(); i < heads * kHeadDim; i += 4 * 64 * kAttnWaves) {
    const int g = i / kHeadDim, h = i % kHeadDim;
    const float own = waves.max[LaneId() % kAttnWaves][g];
    const float max = ReduceLanes<Max>(own, kAttnWaves);
    const float factor = Rescale(own, max);
    const float factors[] = {Dpp<kDppQuad0>(factor), Dpp<kDppQuad1>(factor),
                             Dpp<kDppQuad2>(factor), Dpp<kDppQuad3>(factor)};
    float sum = 0.0f;
    float_x4 out = float_x4(0.0f);
    for (int w = 0; w < kAttnWaves; ++w) {
      sum = __builtin_fmaf(factors[w], waves.sum[w][g], sum);
      out = __builtin_elementwise_fma(float_x4(factors[w]),
                                      LoadAligned<float_x4, 16>(&waves.out[w][g][h]), out);
    }
    const int64_t at = (row * args.N + head0 + g) * args.max_chunks + chunk;
    if (h == 0) args.max_TNC[at] = max, args.sum_TNC[at] = sum;
    *reinterpret_cast<float_x4*>(args.out_TNCH + at * kHeadDim + h) = out * v_scale;
  }
}

// Turns k by RoPE and stores k and v of the row's token in its slot; all threads take part.
template <class Cache, int kHeadDim>
GRETA_DEVICE void AppendToken(const AttnArgs& args, int64_t row, int sequence, int kv_head,
                              int position, const float* cos_sin_H) {
  const float* k_H = args.k_TKH + (row * args.K + kv_head) * kHeadDim;
  const float* v_H = args.v_TKH + (row * args.K + kv_head) * kHeadDim;
  const int64_t slot = args.kv.SlotOffset(sequence, kv_head, position, kHeadDim);
  const float k_scale = ScaleOf<Cache>(args.kv.scales_2K, kv_head);
  const float v_scale = ScaleOf<Cache>(args.kv.scales_2K, args.K + kv_head);
  for (int h = 2 * ThreadId(); h < kHeadDim; h += 2 * 64 * kAttnWaves) {
    float k[2];
    LoadQuery<2>(k_H, cos_sin_H, h, k);
    const float v[] = {v_H[h], v_H[h + 1]};
    for (int e = 0; e < 2; ++e) {
      StoreElement<Cache>(args.k_append_PKJH, slot + h + e, k[e], k_scale);
      StoreElement<Cache>(args.v_append_PKJH, slot + h + e, v[e], v_scale);
    }
  }
}

// The kernel of every route. `Tile` computes one wave's tile of 64 slots into the scratch.
// Grid: x = workgroups over chunks, y = kv head * head tiles + tile, z = row.
template <class Cache, int kHeadDim, int kHeads, class Tile, bool kFused>
GRETA_DEVICE void AttendChunks(const int32_t* position_T, const int32_t* sequence_T,
                               const AttnArgs& args) {
  __shared__ ChunkScratch<kHeads, kHeadDim> scratch;
  __shared__ typename Tile::Shared shared;
  const int64_t row = BlockZ();
  int position = position_T[row], sequence = sequence_T[row], N = args.N, window = args.window;
  // The first round trip to memory: all that the next one needs is waited for together. Left alone,
  // each would be loaded where it is used.
  __asm__ volatile("" : "+s"(position), "+s"(sequence), "+s"(N), "+s"(window)
                   : "s"(args.q_TNH), "s"(args.kv.table_BP), "s"(args.kv.page_stride),
                     "s"(args.kv.log2_page), "s"(args.workgroups));
  const LiveSlots live = LiveSlots::At(position, window);
  const int G = N / args.K, tiles = (G + kHeads - 1) / kHeads;
  const int kv_head = BlockY() / tiles, g0 = BlockY() % tiles * kHeads;
  const int head0 = kv_head * G + g0, heads = G - g0 < kHeads ? G - g0 : kHeads;
  const float* cos_sin_H =
      kFused ? args.cos_sin_SH + static_cast<int64_t>(position) * kHeadDim : nullptr;
  int chunk = live.first / kChunk + BlockX();
  if (chunk * kChunk >= live.end) return;
  int s0 = chunk * kChunk + WaveId() * kTile;
  // The second: where K and V lie, and the queries. The third brings K.
  const auto rows_of_tile = [&] {
    return TileRows::At(args.kv, sequence, kv_head, s0, live, kHeadDim);
  };
  TileRows rows = rows_of_tile();
  if constexpr (kFused) {
    // Whoever reads the newest slot has written it: no other workgroup needs to be waited for.
    const int newest = position / kChunk;
    if ((newest - chunk) % args.workgroups == 0) {
      AppendToken<Cache, kHeadDim>(args, row, sequence, kv_head, position, cos_sin_H);
      Barrier();
    }
  }
  const float k_scale = ScaleOf<Cache>(args.kv.scales_2K, kv_head);
  const float v_scale = ScaleOf<Cache>(args.kv.scales_2K, args.K + kv_head);
  Tile tile;
  tile.LoadQueries(args.q_TNH + (row * args.N + head0) * kHeadDim, cos_sin_H, heads, shared);
  for (;;) {
    const bool empty = s0 >= live.end || s0 + kTile <= live.first;
    if (empty) {
      for (int i = LaneId(); i < kHeads; i += kWaveSize) {
        scratch.max[WaveId()][i] = -kInfinity, scratch.sum[WaveId()][i] = 0.0f;
      }
      float* out = &scratch.out[WaveId()][0][0];
      for (int i = LaneId(); i < kHeads * kHeadDim; i += kWaveSize) out[i] = 0.0f;
    } else {
      tile.Run(shared, static_cast<const Cache*>(args.kv.k_PKJH),
               static_cast<const Cache*>(args.kv.v_PKJH), rows, s0, live, args.scale * k_scale,
               args.softcap, scratch.max[WaveId()], scratch.sum[WaveId()], scratch.out[WaveId()]);
    }
    Barrier();
    StoreChunk<kHeads, kHeadDim>(scratch, args, row, head0, heads, chunk, v_scale);
    chunk += args.workgroups, s0 += args.workgroups * kChunk;
    if (chunk * kChunk >= live.end) return;
    rows = rows_of_tile();
    Barrier();
  }
}

#endif  // GRETA_KERNELS_ATTENTION_H_
