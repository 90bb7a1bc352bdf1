// Typed buffer accesses: elements of one to four components in the formats of a buffer descriptor.

#pragma once

#include "transfer.h"

enum { UNORM, SNORM, USCALED, SSCALED, UINT, SINT, FLOAT = 7 };
enum { HALVES = 1, HIGH_HALF_ONLY = 2 };

// Components and bits of each data format; the packed formats of 10 and 11 bits are refused.
static const u8 kComponents[16] = {0, 1, 1, 2, 1, 2, 0, 0, 0, 0, 4, 2, 4, 3, 4, 0};
static const u8 kBits[16] = {0, 8, 16, 8, 32, 16, 0, 0, 0, 0, 8, 32, 16, 32, 32, 0};

static u32 bits_of_float(float f) { return ((Bits32){.f = f}).u; }
static float float_of_bits(u32 u) { return ((Bits32){.u = u}).f; }
static u32 bits_of_half(float f) {
  union { _Float16 h; u16 u; } x = {(_Float16)f};
  return x.u;
}
static float float_of_half(u32 bits) {
  union { u16 u; _Float16 h; } x = {(u16)bits};
  return (float)x.h;
}

// A component in memory as a 32-bit integer or float, or as a half.
static u32 unpacked(u32 raw, u32 bits, u32 kind, int half) {
  const i32 s = (i32)(raw << (32 - bits)) >> (32 - bits);
  const double most = (double)(((u64)1 << (bits - (kind == SNORM))) - 1);
  float f = 0;
  switch (kind) {
    case UINT: return raw;
    case SINT: return (u32)s;
    case UNORM: f = (float)(raw / most); break;
    case SNORM: f = s < -most ? -1.0f : (float)(s / most); break;
    case USCALED: f = (float)raw; break;
    case SSCALED: f = (float)s; break;
    default:
      if (bits == 16 && half) return raw;
      f = bits == 16 ? float_of_half(raw) : float_of_bits(raw);
  }
  return half ? bits_of_half(f) : bits_of_float(f);
}

// The reverse: rounded to nearest even, saturated, NaN to 0; integers keep their low bits.
static u32 packed(u32 value, u32 bits, u32 kind, int half) {
  const double most = (double)(((u64)1 << (bits - (kind == SNORM || kind == SSCALED))) - 1);
  const double least = kind == SNORM ? -most : kind == SSCALED ? -most - 1 : 0;
  if (kind == UINT || kind == SINT) return value;
  if (kind == FLOAT && bits == 16 && half) return value;
  const float f = half ? float_of_half(value) : float_of_bits(value);
  if (kind == FLOAT) return bits == 16 ? bits_of_half(f) : bits_of_float(f);
  double x = f != f ? 0.0 : kind <= SNORM ? f * most : f;
  x = x < least ? least : x > most ? most : x;
  return (u32)(int64_t)__builtin_rint(x);
}

typedef struct {
  u32 data, kind, select[4];
} TexelFormat;

// From the instruction (below 128), or from the descriptor with its choice of components.
static TexelFormat format_of(const Wave* w, u32 descriptor, u32 given) {
  const u32 word = w->s[descriptor + 3];
  TexelFormat f = {given & 15, given >> 4 & 7, {4, 5, 6, 7}};
  if (given < 128) return f;
  f.data = word >> 15 & 15, f.kind = word >> 12 & 7;
  for (int c = 0; c < 4; c++) f.select[c] = word >> 3 * c & 7;
  return f;
}

static int is_refused(const TexelFormat* f) {
  const u32 bits = kBits[f->data];
  if (!bits || f->kind == 6) return 1;
  return f->kind == FLOAT ? bits == 8 : bits == 32 && f->kind < UINT;
}

static u32 component(u64 address, u32 bits) {
  return bits == 8 ? PEEK(u8, address) : bits == 16 ? PEEK(u16, address) : PEEK(u32, address);
}

i32 buffer_load_typed(Wave* w, u32 site, i32 row, u32 flags, u32 descriptor, u32 offset, i32 dst,
                      u32 given, u32 count, u32 how) {
  const TexelFormat f = format_of(w, descriptor, given);
  const u32 bits = kBits[f.data], present = kComponents[f.data];
  if (is_refused(&f)) return fault(w, site, 0, f.data | f.kind << 4, BAD_FORMAT);
  const u32 read = present < 4 ? present : 4;
  Lanes lanes;
  if (buffer_lanes(w, site, row, flags, descriptor, offset, read * bits / 8, GLOBAL_LOAD, &lanes))
    return 1;
  const u64 exec = exec_of(w);
  const int half = how & HALVES;
  const i32 dwords = half ? (count + 1) / 2 : count;
  if (w->observer) {
    if (sanitize_lanes(w, site, lanes.a, read * bits / 8, READ_BIT)) return 1;
    note_typed_load(w, lanes.a, read * bits / 8, dst, dwords);
  }
  const u32 one = f.kind == UINT || f.kind == SINT ? 1 : half ? 0x3c00 : 0x3f800000;
  FOR_ACTIVE(i, exec) {
    u32 value[4];
    for (u32 c = 0; c < count; c++) {
      const u32 from = f.select[c] - 4;
      if (lanes.a[i] == (u64)kZeros)
        value[c] = 0;
      else if (f.select[c] < 2)
        value[c] = f.select[c] ? one : 0;
      else if (from < present)
        value[c] = unpacked(component(lanes.a[i] + from * bits / 8, bits), bits, f.kind, half);
      else
        value[c] = from == 3 ? one : 0;
      if (half) value[c] &= 0xffff;
    }
    if (how & HIGH_HALF_ONLY)
      w->v[dst][i] = HIGH_HALF(w->v[dst][i], value[0]);
    else if (!half)
      for (u32 c = 0; c < count; c++) w->v[dst + c][i] = value[c];
    else
      for (u32 c = 0; c < count; c++) {
        u32* out = &w->v[dst + c / 2][i];
        *out = c % 2 ? HIGH_HALF(*out, value[c]) : LOW_HALF(*out, value[c]);
      }
  }
  return 0;
}

// Every component of the format must be given: what the others become is not stated.
i32 buffer_store_typed(Wave* w, u32 site, i32 row, u32 flags, u32 descriptor, u32 offset, i32 src,
                       u32 given, u32 count, u32 how) {
  const TexelFormat f = format_of(w, descriptor, given);
  const u32 bits = kBits[f.data], present = kComponents[f.data];
  if (is_refused(&f) || count < present)
    return fault(w, site, 0, f.data | f.kind << 4, BAD_FORMAT);
  Lanes lanes;
  const u64 size = present * bits / 8, exec = exec_of(w);
  if (buffer_lanes(w, site, row, flags, descriptor, offset, size, GLOBAL_STORE, &lanes)) return 1;
  const int half = how & HALVES;
  if (w->observer) {
    if (sanitize_lanes(w, site, lanes.a, size, WRITTEN_BIT)) return 1;
    FOR_ACTIVE(i, exec) if (w->observer->checks & CHECK_INIT)
      define_bytes(w, lanes.a[i], size, (w->observer->defined[src] >> i) & 1);
  }
  FOR_ACTIVE(i, exec) for (u32 c = 0; c < present; c++) {
    u32 value = half ? w->v[src + c / 2][i] >> (c % 2 || how & HIGH_HALF_ONLY ? 16 : 0) & 0xffff
                     : w->v[src + c][i];
    if (half && f.kind == SINT) value = (u32)(i32)(i16)value;
    value = packed(value, bits, f.kind, half);
    const u64 at = lanes.a[i] + c * bits / 8;
    if (bits == 8) POKE(u8, at, (u8)value);
    else if (bits == 16) POKE(u16, at, (u16)value);
    else POKE(u32, at, value);
  }
  return 0;
}
