// GGUF weight formats, decoded where they are used. The byte layouts are those of ggml-quants.
//
// Every format is read in units of 32 weights: two runs of 16 consecutive elements, at LowStart and
// HighStart of the row. For the K-quants eight lanes share a superblock of 256, and each lane loads
// its quantised bits in 16-byte pieces.
#ifndef GRETA_KERNELS_WEIGHT_FORMATS_H_
#define GRETA_KERNELS_WEIGHT_FORMATS_H_

#include "device.h"

constexpr int kUnit = 32;
constexpr int kUnitsPerSuperblock = 8;

// A unit's weights: elements [4 * i, 4 * i + 4) of the low and of the high run.
struct UnitWeights {
  float_x4 low[4];
  float_x4 high[4];
};

// The value, with its origin hidden from the optimiser: masked nibbles stay four to a register,
// where v_cvt_f32_ubyte0 to 3 read them, instead of being extracted one by one.
GRETA_DEVICE uint32_t Packed(uint32_t nibbles) {
  __asm__("" : "+v"(nibbles));
  return nibbles;
}

GRETA_DEVICE float HalfBits(uint32_t bits) {
  return static_cast<float>(__builtin_bit_cast(half_t, static_cast<uint16_t>(bits)));
}

// The four bytes of a word as floats (v_cvt_f32_ubyte0 to 3).
GRETA_DEVICE float_x4 BytesToFloat(uint32_t w) {
  return float_x4{static_cast<float>(w & 0xff), static_cast<float>((w >> 8) & 0xff),
                  static_cast<float>((w >> 16) & 0xff), static_cast<float>(w >> 24)};
}

GRETA_DEVICE float_x4 SignedBytesToFloat(uint32_t w) {
  const int32_t s = static_cast<int32_t>(w);
  return float_x4{static_cast<float>((s << 24) >> 24), static_cast<float>((s << 16) >> 24),
                  static_cast<float>((s << 8) >> 24), static_cast<float>(s >> 24)};
}

GRETA_DEVICE float_x4 Fma(float_x4 a, float_x4 b, float_x4 c) {
  return __builtin_elementwise_fma(a, b, c);
}

// The 6-bit scales and minima that Q4_K and Q5_K pack in 12 bytes, for sub-blocks 2c and 2c + 1.
struct SuperblockScales {
  float d[2];
  float min[2];

  // `header`: the first 16 bytes of the superblock: d, dmin, scales.
  GRETA_DEVICE SuperblockScales Unpack(uint_x4 header, uint32_t c) {
    const uint32_t low4 = header[3];
    // Sub-blocks 4 to 7 have four bits in the last word and two on top of the first words.
    const uint32_t late_scales = (low4 & 0x0f0f0f0f) | ((header[1] >> 2) & 0x30303030);
    const uint32_t late_minima = ((low4 >> 4) & 0x0f0f0f0f) | ((header[2] >> 2) & 0x30303030);
    const uint32_t scales = (c < 2 ? header[1] & 0x3f3f3f3f : late_scales) >> (16 * (c & 1));
    const uint32_t minima = (c < 2 ? header[2] & 0x3f3f3f3f : late_minima) >> (16 * (c & 1));
    const float d = HalfBits(header[0]), dmin = HalfBits(header[0] >> 16);
    // Exact: 11 by 6 bits.
    return {{d * static_cast<float>(scales & 0xff), d * static_cast<float>((scales >> 8) & 0xff)},
            {dmin * static_cast<float>(minima & 0xff),
             dmin * static_cast<float>((minima >> 8) & 0xff)}};
  }
};

// Q4_K and Q5_K order their nibbles alike: 32 bytes hold 64 elements, low nibbles first.
struct NibbleOrder {
  GRETA_DEVICE int LowStart(uint32_t unit) {
    return 256 * (unit / 8) + 64 * (unit % 8 / 2) + 16 * (unit % 2);
  }
  GRETA_DEVICE int HighStart(uint32_t unit) { return LowStart(unit) + 32; }
};

struct Q4K : NibbleOrder {
  static constexpr int kBlock = 256, kBlockBytes = 144;

  GRETA_DEVICE UnitWeights Decode(const uint8_t* row, uint32_t unit) {
    const uint8_t* block = row + static_cast<int64_t>(unit / kUnitsPerSuperblock) * kBlockBytes;
    const uint32_t c = unit % 8 / 2;
    const uint_x4 header = LoadAligned<uint_x4, 16>(block);
    const uint_x4 q = LoadAligned<uint_x4, 16>(block + 16 + 16 * (unit % 8));
    const SuperblockScales s = SuperblockScales::Unpack(header, c);
    UnitWeights w;
    for (int i = 0; i < 4; ++i) {
      w.low[i] = Fma(BytesToFloat(Packed(q[i] & 0x0f0f0f0f)), float_x4(s.d[0]), float_x4(-s.min[0]));
      w.high[i] =
          Fma(BytesToFloat(Packed((q[i] >> 4) & 0x0f0f0f0f)), float_x4(s.d[1]), float_x4(-s.min[1]));
    }
    return w;
  }
};

struct Q5K : NibbleOrder {
  static constexpr int kBlock = 256, kBlockBytes = 176;

  GRETA_DEVICE UnitWeights Decode(const uint8_t* row, uint32_t unit) {
    const uint8_t* block = row + static_cast<int64_t>(unit / kUnitsPerSuperblock) * kBlockBytes;
    const uint32_t c = unit % 8 / 2;
    const uint_x4 header = LoadAligned<uint_x4, 16>(block);
    // Bit 2c of byte l is the fifth bit of element 64c + l, bit 2c + 1 that of 64c + 32 + l.
    const uint_x4 fifth = LoadAligned<uint_x4, 16>(block + 16 + 16 * (unit % 2));
    const uint_x4 q = LoadAligned<uint_x4, 16>(block + 48 + 16 * (unit % 8));
    const SuperblockScales s = SuperblockScales::Unpack(header, c);
    UnitWeights w;
    for (int i = 0; i < 4; ++i) {
      const uint32_t bits = fifth[i] >> (2 * c);
      const uint32_t low = (q[i] & 0x0f0f0f0f) | ((bits & 0x01010101) << 4);
      const uint32_t high = ((q[i] >> 4) & 0x0f0f0f0f) | ((bits & 0x02020202) << 3);
      w.low[i] = Fma(BytesToFloat(Packed(low)), float_x4(s.d[0]), float_x4(-s.min[0]));
      w.high[i] = Fma(BytesToFloat(Packed(high)), float_x4(s.d[1]), float_x4(-s.min[1]));
    }
    return w;
  }
};

// Q6_K: 128 bytes of low nibbles, 64 bytes of two-bit tops, 16 signed scales, d. 210 bytes, so
// blocks are only 2-byte aligned.
struct Q6K {
  static constexpr int kBlock = 256, kBlockBytes = 210;

  // Half n of the superblock, plane p (elements 0 to 31 or 32 to 63 of it), 16 elements v.
  GRETA_DEVICE int LowStart(uint32_t unit) {
    const uint32_t n = unit % 8 / 4, p = unit / 2 % 2, v = unit % 2;
    return 256 * (unit / 8) + 128 * n + 32 * p + 16 * v;
  }
  GRETA_DEVICE int HighStart(uint32_t unit) { return LowStart(unit) + 64; }

  GRETA_DEVICE UnitWeights Decode(const uint8_t* row, uint32_t unit) {
    const uint8_t* block = row + static_cast<int64_t>(unit / kUnitsPerSuperblock) * kBlockBytes;
    const uint32_t n = unit % 8 / 4, p = unit / 2 % 2, v = unit % 2;
    const uint_x4 q = LoadAligned<uint_x4, 2>(block + 64 * n + 32 * p + 16 * v);
    const uint_x4 tops = LoadAligned<uint_x4, 2>(block + 128 + 32 * n + 16 * v);
    const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192 + 8 * n + v + 2 * p);
    const float d = HalfBits(LoadAligned<uint16_t, 2>(block + 208));
    // Exact: 11 bits of d, 7 of the scale, and then 5 of the weight fill 24 at most.
    const float d_low = d * static_cast<float>(scales[0]);
    const float d_high = d * static_cast<float>(scales[4]);
    UnitWeights w;
    for (int i = 0; i < 4; ++i) {
      const uint32_t bits = tops[i] >> (2 * p);
      const uint32_t low = (q[i] & 0x0f0f0f0f) | ((bits & 0x03030303) << 4);
      const uint32_t high = ((q[i] >> 4) & 0x0f0f0f0f) | (bits & 0x30303030);
      w.low[i] = (BytesToFloat(Packed(low)) - 32.0f) * d_low;
      w.high[i] = (BytesToFloat(Packed(high)) - 32.0f) * d_high;
    }
    return w;
  }
};

// Formats whose unit is 32 consecutive elements.
struct PlainOrder {
  GRETA_DEVICE int LowStart(uint32_t unit) { return 32 * unit; }
  GRETA_DEVICE int HighStart(uint32_t unit) { return 32 * unit + 16; }
};

struct Q80 : PlainOrder {
  static constexpr int kBlock = 32, kBlockBytes = 34;

  GRETA_DEVICE UnitWeights Decode(const uint8_t* row, uint32_t unit) {
    const uint8_t* block = row + static_cast<int64_t>(unit) * kBlockBytes;
    const float d = HalfBits(LoadAligned<uint16_t, 2>(block));
    const uint_x4 low = LoadAligned<uint_x4, 2>(block + 2);
    const uint_x4 high = LoadAligned<uint_x4, 2>(block + 18);
    UnitWeights w;
    for (int i = 0; i < 4; ++i) {
      w.low[i] = SignedBytesToFloat(low[i]) * d;
      w.high[i] = SignedBytesToFloat(high[i]) * d;
    }
    return w;
  }
};

// Q4_0: the low nibbles are elements 0 to 15, the high ones 16 to 31, all 8 too large.
struct Q40 : PlainOrder {
  static constexpr int kBlock = 32, kBlockBytes = 18;

  GRETA_DEVICE UnitWeights Decode(const uint8_t* row, uint32_t unit) {
    const uint8_t* block = row + static_cast<int64_t>(unit) * kBlockBytes;
    const float d = HalfBits(LoadAligned<uint16_t, 2>(block));
    const uint_x4 q = LoadAligned<uint_x4, 2>(block + 2);
    UnitWeights w;
    for (int i = 0; i < 4; ++i) {
      w.low[i] = (BytesToFloat(Packed(q[i] & 0x0f0f0f0f)) - 8.0f) * d;
      w.high[i] = (BytesToFloat(Packed((q[i] >> 4) & 0x0f0f0f0f)) - 8.0f) * d;
    }
    return w;
  }
};

struct F32 : PlainOrder {
  static constexpr int kBlock = 1, kBlockBytes = 4;

  GRETA_DEVICE float Element(const uint8_t* row, int i) {
    return LoadAligned<float, 4>(row + 4 * static_cast<int64_t>(i));
  }
  GRETA_DEVICE UnitWeights Decode(const uint8_t* row, uint32_t unit) {
    const uint8_t* p = row + static_cast<int64_t>(unit) * 4 * kUnit;
    UnitWeights w;
    for (int i = 0; i < 4; ++i) {
      w.low[i] = LoadAligned<float_x4, 4>(p + 16 * i);
      w.high[i] = LoadAligned<float_x4, 4>(p + 64 + 16 * i);
    }
    return w;
  }
};

struct F16 : PlainOrder {
  static constexpr int kBlock = 1, kBlockBytes = 2;

  GRETA_DEVICE float Element(const uint8_t* row, int i) {
    return HalfBits(LoadAligned<uint16_t, 2>(row + 2 * static_cast<int64_t>(i)));
  }
  GRETA_DEVICE UnitWeights Decode(const uint8_t* row, uint32_t unit) {
    const uint8_t* p = row + static_cast<int64_t>(unit) * 2 * kUnit;
    UnitWeights w;
    for (int i = 0; i < 2; ++i) {
      const half_x8 low = LoadAligned<half_x8, 2>(p + 16 * i);
      const half_x8 high = LoadAligned<half_x8, 2>(p + 32 + 16 * i);
      w.low[2 * i] = __builtin_convertvector(low.lo, float_x4);
      w.low[2 * i + 1] = __builtin_convertvector(low.hi, float_x4);
      w.high[2 * i] = __builtin_convertvector(high.lo, float_x4);
      w.high[2 * i + 1] = __builtin_convertvector(high.hi, float_x4);
    }
    return w;
  }
};

struct BF16 : PlainOrder {
  static constexpr int kBlock = 1, kBlockBytes = 2;

  GRETA_DEVICE float Element(const uint8_t* row, int i) {
    const uint32_t bits = LoadAligned<uint16_t, 2>(row + 2 * static_cast<int64_t>(i));
    return FloatOf(static_cast<int32_t>(bits << 16));
  }
  // Two elements a word, the earlier one in the low half.
  GRETA_DEVICE float_x4 FromWords(uint32_t first, uint32_t second) {
    const uint_x4 bits = {first << 16, first & 0xffff0000u, second << 16, second & 0xffff0000u};
    return __builtin_bit_cast(float_x4, bits);
  }
  GRETA_DEVICE UnitWeights Decode(const uint8_t* row, uint32_t unit) {
    const uint8_t* p = row + static_cast<int64_t>(unit) * 2 * kUnit;
    UnitWeights w;
    for (int i = 0; i < 2; ++i) {
      const uint_x4 low = LoadAligned<uint_x4, 2>(p + 16 * i);
      const uint_x4 high = LoadAligned<uint_x4, 2>(p + 32 + 16 * i);
      w.low[2 * i] = FromWords(low[0], low[1]);
      w.low[2 * i + 1] = FromWords(low[2], low[3]);
      w.high[2 * i] = FromWords(high[0], high[1]);
      w.high[2 * i + 1] = FromWords(high[2], high[3]);
    }
    return w;
  }
};

// Bytes of a row of D weights.
template <class Format>
GRETA_DEVICE int64_t RowBytes(int D) {
  return static_cast<int64_t>(D / Format::kBlock) * Format::kBlockBytes;
}

#endif  // GRETA_KERNELS_WEIGHT_FORMATS_H_
