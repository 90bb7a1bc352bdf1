// Atomics in global, flat, buffer and LDS memory.

#pragma once

#include "memory.h"

enum {  // the order of memory_ops.ATOMICS
  SWAP, CMPSWAP, ADD, SUB, SMIN, UMIN, SMAX, UMAX, AND, OR, XOR, INC, DEC,
  ADD_F32, ADD_F64, MIN_F64, MAX_F64, PK_ADD_F16, PK_ADD_BF16,
  RSUB, MIN_F32, MAX_F32, MSKOR, CMPSWAP_F32, CMPSWAP_F64, WRAP
};

typedef union {
  u32 u;
  float f;
} Bits32;
typedef union {
  u64 u;
  double f;
} Bits64;

static u16 bf16_add(u16 x, u16 y) {
  Bits32 a = {(u32)x << 16}, b = {(u32)y << 16}, s;
  s.f = a.f + b.f;
  if (s.f != s.f) return 0x7fc0;
  return (u16)((s.u + 0x7fff + (s.u >> 16 & 1)) >> 16);
}

static u16 f16_add(u16 x, u16 y) {
  union {
    u16 u;
    _Float16 f;
  } a = {x}, b = {y};
  a.f = (_Float16)((float)a.f + (float)b.f);
  return a.u;
}

static u64 combine(u32 operation, u64 old, u64 x, u64 compare, int wide) {
  const u64 mask = wide ? ~(u64)0 : 0xffffffffu;
  const int64_t so = wide ? (int64_t)old : (i32)old, sx = wide ? (int64_t)x : (i32)x;
  Bits64 d0 = {old}, d1 = {x};
  Bits32 f0 = {(u32)old}, f1 = {(u32)x};
  switch (operation) {
    case SWAP: return x;
    case CMPSWAP: return old == compare ? x : old;
    case ADD: return (old + x) & mask;
    case SUB: return (old - x) & mask;
    case RSUB: return (x - old) & mask;
    case MSKOR: return (old & ~compare) | x;
    case WRAP: return (old >= compare ? old - compare : old + x) & mask;
    case MIN_F32: return f1.f < f0.f || f0.f != f0.f ? f1.u : f0.u;
    case MAX_F32: return f1.f > f0.f || f0.f != f0.f ? f1.u : f0.u;
    case CMPSWAP_F32: f1.u = (u32)compare; return f0.f == f1.f ? x : old;
    case CMPSWAP_F64: d1.u = compare; return d0.f == d1.f ? x : old;
    case SMIN: return sx < so ? x : old;
    case SMAX: return sx > so ? x : old;
    case UMIN: return x < old ? x : old;
    case UMAX: return x > old ? x : old;
    case AND: return old & x;
    case OR: return old | x;
    case XOR: return old ^ x;
    case INC: return old >= x ? 0 : old + 1;
    case DEC: return old == 0 || old > x ? x : old - 1;
    case ADD_F32: f0.f += f1.f; return f0.u;
    case ADD_F64: d0.f += d1.f; return d0.u;
    case MIN_F64: return d1.f < d0.f || d0.f != d0.f ? d1.u : d0.u;
    case MAX_F64: return d1.f > d0.f || d0.f != d0.f ? d1.u : d0.u;
    case PK_ADD_F16:
      return (u32)f16_add((u16)(old >> 16), (u16)(x >> 16)) << 16 | f16_add((u16)old, (u16)x);
    case PK_ADD_BF16:
      return (u32)bf16_add((u16)(old >> 16), (u16)(x >> 16)) << 16 | bf16_add((u16)old, (u16)x);
  }
  return old;
}

// The old value; indivisible, because workgroups run on several threads.
static u64 exchange(void* at, u32 operation, u64 x, u64 compare, i32 dwords) {
  if (dwords == 2) {
    u64* p = at;
    u64 old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(p, &old, combine(operation, old, x, compare, 1), 0,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return old;
  }
  u32* p = at;
  u32 old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(p, &old, (u32)combine(operation, old, x, compare, 0), 0,
                                      __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return old;
}

// Lane by lane in ascending order.
static void atomics(Wave* w, const Lanes* lanes, u64 exec, i32 src, i32 compare_row, i32 dst,
                    u32 operation, i32 dwords) {
  FOR_ACTIVE(i, exec) {
    u64 x = w->v[src][i], compare = compare_row < 0 ? 0 : w->v[compare_row][i];
    if (dwords == 2) {
      x |= (u64)w->v[src + 1][i] << 32;
      if (compare_row >= 0) compare |= (u64)w->v[compare_row + 1][i] << 32;
    }
    const u64 old = exchange((void*)lanes->a[i], operation, x, compare, dwords);
    if (dst >= 0) {
      w->v[dst][i] = (u32)old;
      if (dwords == 2) w->v[dst + 1][i] = (u32)(old >> 32);
    }
  }
}

#define MEMORY_ATOMIC(space, PARAMETERS, RESOLVE)                                            \
  i32 space##_atomic(PARAMETERS(), i32 src, i32 dst, u32 operation, i32 dwords) {       \
    Lanes lanes;                                                                             \
    if (RESOLVE(4 * (u64)dwords, GLOBAL_ATOMIC)) return 1;                                    \
    const u64 exec = exec_of(w);                                                             \
    if (exec && w->observer) {                                                               \
      if (sanitize_lanes(w, site, lanes.a, 4 * (u64)dwords, ATOMIC_ACCESS)) return 1;        \
      note_atomic(w, lanes.a, src, dst, operation == SWAP, dwords);                          \
    }                                                                                        \
    /* Global compare-and-swap keeps the new value first and the comparand after it. */      \
    atomics(w, &lanes, exec, src, operation == CMPSWAP ? src + dwords : -1, dst, operation,  \
            dwords);                                                                         \
    return 0;                                                                                \
  }
MEMORY_ATOMIC(global, GLOBAL_PARAMETERS, GLOBAL_LANES)
MEMORY_ATOMIC(flat, GLOBAL_PARAMETERS, FLAT_LANES)
MEMORY_ATOMIC(buffer, BUFFER_PARAMETERS, BUFFER_LANES)

// Both old values are read before a register is written; the first exchange of all lanes is first.
i32 lds_exchange2(Wave* w, u32 site, i32 row, u32 base0, u32 base1, i32 data0, i32 data1, i32 dst,
                  i32 dwords) {
  const u64 exec = exec_of(w), size = 4 * (u64)dwords;
  Lanes lanes[2];
  const u32 base[2] = {base0, base1};
  const i32 data[2] = {data0, data1};
  u32 old[2][2][64];
  if (!exec) return 0;
  for (int k = 0; k < 2; k++) {
    if (lds_lanes(w, site, row, base[k], size, &lanes[k])) return 1;
    if (w->observer && sanitize_lanes(w, site, lanes[k].a, size, ATOMIC_ACCESS)) return 1;
  }
  for (int k = 0; k < 2; k++)
    FOR_ACTIVE(i, exec)
      for (int j = 0; j < dwords; j++)
        old[k][j][i] = __atomic_exchange_n((u32*)lanes[k].a[i] + j, w->v[data[k] + j][i],
                                           __ATOMIC_SEQ_CST);
  for (int k = 0; k < 2; k++) {
    FOR_ACTIVE(i, exec)
      for (int j = 0; j < dwords; j++) w->v[dst + k * dwords + j][i] = old[k][j][i];
    if (w->observer) note_atomic(w, lanes[k].a, data[k], dst + k * dwords, 1, dwords);
  }
  return 0;
}

// DS compare-and-store has the comparand in the first data register and the new value after it;
// mask-or likewise the mask, then the bits.
i32 lds_atomic(Wave* w, u32 site, i32 row, u32 base, i32 data, i32 data2, i32 dst, u32 operation,
               i32 dwords) {
  Lanes lanes;
  if (lds_lanes(w, site, row, base, 4 * (u64)dwords, &lanes)) return 1;
  if (exec_of(w) && w->observer) {
    if (sanitize_lanes(w, site, lanes.a, 4 * (u64)dwords, ATOMIC_ACCESS)) return 1;
    note_atomic(w, lanes.a, data, dst, operation == SWAP, dwords);
  }
  const int swap = operation == CMPSWAP || operation >= MSKOR;
  atomics(w, &lanes, exec_of(w), swap ? data2 : data, swap ? data : -1, dst, operation, dwords);
  return 0;
}

