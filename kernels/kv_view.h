// The KV cache as kernels see it: pages, block tables, and the types a slot may be stored in.
//
// A page holds J = 2^log2_page slots of every kv head, [kv head][slot][H]; a block table lists the
// pages of a sequence. A contiguous cache is the special case of one page for a whole sequence.
#ifndef GRETA_KERNELS_KV_VIEW_H_
#define GRETA_KERNELS_KV_VIEW_H_

#include "device.h"

struct bfloat_t {
  uint16_t bits;
};
struct fp8_t {  // E4M3 FNUZ: bias 8, largest 240, 0x80 is NaN
  uint8_t bits;
};

// One layer's slabs; strides are in elements. Mirrored by hip_engine/arguments.py.
struct KvView {
  void* k_PKJH;
  void* v_PKJH;
  const int32_t* table_BP;
  const float* scales_2K;  // of fp8: k's, then v's; null otherwise
  int64_t page_stride;
  int64_t head_stride;
  int32_t log2_page;
  int32_t table_stride;

  __device__ int64_t SlotOffset(int sequence, int kv_head, int slot, int H) const {
    const int32_t* table_P = table_BP + static_cast<int64_t>(sequence) * table_stride;
    const int in_page = slot & static_cast<int>((1u << log2_page) - 1);
    return table_P[slot >> log2_page] * page_stride + kv_head * head_stride +
           static_cast<int64_t>(in_page) * H;
  }
};

// How a type's 16 bytes become fp32, and how an element is written. Zero bits are zero in each.
template <class Cache>
struct CacheType;

template <>
struct CacheType<float> {
  static constexpr bool kScaled = false;
  GRETA_DEVICE void Widen(uint_x4 raw, float* x) {
    const float_x4 row = __builtin_bit_cast(float_x4, raw);
    for (int e = 0; e < 4; ++e) x[e] = row[e];
  }
  GRETA_DEVICE float From(float x) { return x; }
};

template <>
struct CacheType<half_t> {
  static constexpr bool kScaled = false;
  GRETA_DEVICE void Widen(uint_x4 raw, float* x) {
    const half_x8 row = __builtin_bit_cast(half_x8, raw);
    for (int e = 0; e < 8; ++e) x[e] = static_cast<float>(row[e]);
  }
  GRETA_DEVICE half_t From(float x) { return static_cast<half_t>(x); }
};

template <>
struct CacheType<bfloat_t> {
  static constexpr bool kScaled = false;
  GRETA_DEVICE void Widen(uint_x4 raw, float* x) {
    for (int e = 0; e < 4; ++e) {
      x[2 * e] = FloatOf(static_cast<int32_t>(raw[e] << 16));
      x[2 * e + 1] = FloatOf(static_cast<int32_t>(raw[e] & 0xffff0000u));
    }
  }
  // To nearest even; a NaN stays one.
  GRETA_DEVICE bfloat_t From(float x) {
    const uint32_t bits = static_cast<uint32_t>(BitsOf(x));
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return {static_cast<uint16_t>((x == x ? rounded : bits | 0x00400000u) >> 16)};
  }
};

template <>
struct CacheType<fp8_t> {
  static constexpr bool kScaled = true;
  GRETA_DEVICE void Widen(uint_x4 raw, float* x) {
    for (int e = 0; e < 4; ++e) {
      const auto low = __builtin_amdgcn_cvt_pk_f32_fp8(static_cast<int>(raw[e]), false);
      const auto high = __builtin_amdgcn_cvt_pk_f32_fp8(static_cast<int>(raw[e]), true);
      x[4 * e] = low[0], x[4 * e + 1] = low[1];
      x[4 * e + 2] = high[0], x[4 * e + 3] = high[1];
    }
  }
  // Saturates at the largest number; comparisons, not fmin, so that a NaN stays one.
  GRETA_DEVICE fp8_t From(float x) {
    x = x > 240.0f ? 240.0f : x;
    x = x < -240.0f ? -240.0f : x;
    return {static_cast<uint8_t>(__builtin_amdgcn_cvt_pk_fp8_f32(x, x, 0, false))};
  }
};

// What stored numbers are multiplied by; `scales` is not looked at for a type that has none.
template <class Cache>
GRETA_DEVICE float ScaleOf(const float* scales, int at) {
  if constexpr (CacheType<Cache>::kScaled) return scales[at];
  return 1.0f;
}

// Stores one element of a new slot.
template <class Cache>
GRETA_DEVICE void StoreElement(void* slab, int64_t at, float x, float scale) {
  if constexpr (CacheType<Cache>::kScaled) x = x / scale;
  static_cast<Cache*>(slab)[at] = CacheType<Cache>::From(x);
}

#endif  // GRETA_KERNELS_KV_VIEW_H_
