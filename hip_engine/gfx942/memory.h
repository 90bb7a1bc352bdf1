// Loads and stores of a wave in every address space: global, flat, LDS, scratch and buffers.
// Lanes are resolved to host addresses first, with every check; then the elements move.

#pragma once

#include "counters.h"

// Lane addresses of an access, each checked against the live allocations.
static i32 resolve(Wave* w, u32 site, i32 row, i32 wide, u64 base, u64 size, u32 kind, u64* a) {
  const u64 exec = exec_of(w);
  const u32 *low = w->v[row], *high = w->v[row + 1];
  Range* range = &w->recent[site % RECENT];
  if (wide)
    for (int i = 0; i < LANES; i++) a[i] = base + (low[i] | (u64)high[i] << 32);
  else
    for (int i = 0; i < LANES; i++) a[i] = base + low[i];
  const u64 span = range->end - range->begin;
  if (span >= size) {
    const u64 begin = range->begin, limit = span - size;
    u64 outside = 0;
    if (exec == ~(u64)0)
      for (int i = 0; i < LANES; i++) outside |= a[i] - begin > limit;
    else
      for (int i = 0; i < LANES; i++) outside |= (a[i] - begin > limit) & (exec >> i);
    if (!(outside & 1)) return 0;
  }
  FOR_ACTIVE(i, exec) {
    if (range->end - range->begin >= size && a[i] - range->begin <= range->end - range->begin - size)
      continue;
    if (!find_range(w->memory, a[i], size, range)) return fault(w, site, i, a[i], kind);
  }
  return 0;
}

static void log_access(Wave* w, const u64* a, u64 exec, u64 size, u32 kind) {
  const u8 mark = (kind != GLOBAL_STORE ? READ_BIT : 0) | (kind != GLOBAL_LOAD ? WRITTEN_BIT : 0);
  FOR_ACTIVE(i, exec) {
    if (a[i] - w->memory->watched >= w->memory->watched_bytes) continue;
    for (u64 b = 0; b < size; b++) *(u8*)(a[i] + b + w->memory->shadow) |= mark;
  }
}

static inline int contiguous(const u64* a, u64 exec, u64 size) {
  u64 different = ~exec;
  for (int i = 0; i < LANES; i++) different |= a[i] ^ (a[0] + i * size);
  return !different;
}

// Elements may be unaligned, as global memory allows.
#define ELEMENT(type) typedef struct { type x; } __attribute__((packed)) type##_any
ELEMENT(u8);
ELEMENT(u16);
ELEMENT(u32);
ELEMENT(u64);
ELEMENT(i8);
ELEMENT(i16);
#define PEEK(type, address) (((const type##_any*)(address))->x)
#define POKE(type, address, value) (((type##_any*)(address))->x = (value))

#define LOW_HALF(old, value) (((old) & 0xffff0000u) | ((u32)(value) & 0xffffu))
#define HIGH_HALF(old, value) (((old) & 0xffffu) | (u32)(value) << 16)
#define WHOLE(old, value) ((u32)(i32)(value))

// Each access comes in three spaces. SPACE_* gives (parameters, lane address array, host pointer).
typedef struct {
  u64 a[LANES];  // host addresses
} Lanes;

#define FOUR(i) 4 * (i), 4 * (i) + 4, 4 * (i) + 8, 4 * (i) + 12
#define SIXTEEN(i) FOUR(i), FOUR((i) + 4), FOUR((i) + 8), FOUR((i) + 12)
static const u32 kFourBytesALane[LANES] = {SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48)};

static i32 global_lanes(Wave* w, u32 site, i32 row, i32 wide, u64 base, u64 size, u32 kind,
                        Lanes* lanes) {
  if (resolve(w, site, row, wide, base, size, kind, lanes->a)) return 1;
  if (__builtin_expect(w->memory->watched_bytes != 0, 0))
    log_access(w, lanes->a, exec_of(w), size, kind);
  if (__builtin_expect(w->counters != 0, 0))
    count_access(w, site, lanes->a, exec_of(w), size, kind);
  return 0;
}

// Row -1: four bytes a lane from M0 on (add-tid addressing, and loads straight to LDS).
static i32 lds_lanes(Wave* w, u32 site, i32 row, u32 base, u64 size, Lanes* lanes) {
  const u64 exec = exec_of(w);
  const u32* address = row < 0 ? kFourBytesALane : w->v[row];
  if (row < 0) base += w->s[124] & 0xffff;
  u64 outside = 0;
  for (int i = 0; i < LANES; i++) {
    const u64 at = (u32)(address[i] + base);  // 32-bit: the base may be negative
    outside |= (at + size > w->lds_bytes) & (exec >> i);
    lanes->a[i] = (u64)w->lds + at;
  }
  if (outside & 1) FOR_ACTIVE(i, exec) {
      const u64 at = (u32)(address[i] + base);
      if (at + size > w->lds_bytes) return fault(w, site, i, at, LDS_ACCESS);
    }
  if (__builtin_expect(w->counters != 0, 0)) count_lds(w, lanes->a, size);
  return 0;
}

static i32 scratch_lanes(Wave* w, u32 site, i32 row, u32 base, u64 size, Lanes* lanes) {
  const u64 exec = exec_of(w);
  FOR_ACTIVE(i, exec) {
    u64 at = (u32)(base + (row < 0 ? 0 : w->v[row][i]));
    if (at + size > w->scratch_stride) return fault(w, site, i, at, SCRATCH_ACCESS);
    lanes->a[i] = (u64)w->scratch + i * w->scratch_stride + at;
  }
  return 0;
}

// A flat access: lanes in the LDS or scratch aperture, and the rest.
static i32 flat_lanes(Wave* w, u32 site, i32 row, i32 wide, u64 base, u64 size, u32 kind,
                      Lanes* lanes) {
  const u64 exec = exec_of(w);
  u64 shared = 0, private = 0;
  const u32 *low = w->v[row], *high = w->v[row + 1];
  u64 a[LANES];
  FOR_ACTIVE(i, exec) {
    a[i] = base + (wide ? (low[i] | (u64)high[i] << 32) : low[i]);
    if (a[i] >> 32 == SHARED_APERTURE) shared |= bit(i);
    if (a[i] >> 32 == PRIVATE_APERTURE) private |= bit(i);
  }
  const u64 global = exec & ~shared & ~private;
  i32 failed = 0;
  if (global) {
    w->s[126] = (u32)global;
    w->s[127] = (u32)(global >> 32);
    failed = global_lanes(w, site, row, wide, base, size, kind, lanes);
    w->s[126] = (u32)exec;
    w->s[127] = (u32)(exec >> 32);
  }
  if (failed) return failed;
  FOR_ACTIVE(i, shared) {
    u64 at = (u32)a[i];
    if (at + size > w->lds_bytes) return fault(w, site, i, at, LDS_ACCESS);
    lanes->a[i] = (u64)w->lds + at;
  }
  FOR_ACTIVE(i, private) {
    u64 at = (u32)a[i];
    if (at + size > w->scratch_stride) return fault(w, site, i, at, SCRATCH_ACCESS);
    lanes->a[i] = (u64)w->scratch + i * w->scratch_stride + at;
  }
  return 0;
}

// A buffer access (MUBUF): lanes outside the buffer read zeros and write nowhere.
static const u8 kZeros[16];
static u8 sink[16] __attribute__((aligned(16)));

static i32 buffer_lanes(Wave* w, u32 site, i32 row, u32 flags, u32 descriptor, u32 offset, u64 size,
                        u32 kind, Lanes* lanes) {
  const u32* d = &w->s[descriptor];
  const u64 base = (d[0] | (u64)d[1] << 32) & 0xffffffffffffu;
  const u32 stride = d[1] >> 16 & 0x3fff, records = d[2];
  Range* range = &w->recent[site % RECENT];
  u64 inside = 0;
  if (d[1] >> 31 || d[3] >> 23 & 1) return fault(w, site, 0, base, BAD_DESCRIPTOR);
  FOR_ACTIVE(i, exec_of(w)) {
    const u32 index = flags & 2 ? w->v[row][i] : 0;
    const u32 voffset = flags & 1 ? w->v[row + (flags & 2 ? 1 : 0)][i] : 0;
    const u64 at = (u64)stride * index + voffset + offset;
    const int outside = stride && (flags & 2) ? index >= records : at + size > records;
    lanes->a[i] = outside ? (u64)(kind == GLOBAL_LOAD ? kZeros : sink) : base + at;
    if (outside) continue;
    inside |= bit(i);
    if (lanes->a[i] - range->begin >= range->end - range->begin ||
        range->end - lanes->a[i] < size)
      if (!find_range(w->memory, lanes->a[i], size, range))
        return fault(w, site, i, lanes->a[i], kind);
  }
  if (__builtin_expect(w->memory->watched_bytes != 0, 0))
    log_access(w, lanes->a, inside, size, kind);
  if (__builtin_expect(w->counters != 0, 0))
    count_access(w, site, lanes->a, inside, size, kind);
  return 0;
}

#define READ_LANES(type, merge)                                        \
  u32* out = w->v[dst];                                                \
  if (contiguous(lanes.a, exec, sizeof(type))) {                       \
    const type##_any* from = (const type##_any*)lanes.a[0];            \
    for (int i = 0; i < LANES; i++) out[i] = merge(out[i], from[i].x); \
  } else {                                                             \
    FOR_ACTIVE(i, exec) out[i] = merge(out[i], PEEK(type, lanes.a[i])); \
  }

#define READ_DWORDS(n)                                                              \
  if (contiguous(lanes.a, exec, 4 * n)) {                                           \
    const u32_any* from = (const u32_any*)lanes.a[0];                               \
    for (int j = 0; j < n; j++)                                                     \
      for (int i = 0; i < LANES; i++) w->v[dst + j][i] = from[n * i + j].x;         \
  } else {                                                                          \
    FOR_ACTIVE(i, exec)                                                             \
      for (int j = 0; j < n; j++) w->v[dst + j][i] = PEEK(u32, lanes.a[i] + 4 * j); \
  }

#define WRITE_DWORDS(n)                                                            \
  if (contiguous(lanes.a, exec, 4 * n)) {                                          \
    u32_any* to = (u32_any*)lanes.a[0];                                            \
    for (int j = 0; j < n; j++)                                                    \
      for (int i = 0; i < LANES; i++) to[n * i + j].x = w->v[src + j][i];          \
  } else {                                                                         \
    FOR_ACTIVE(i, exec)                                                            \
      for (int j = 0; j < n; j++) POKE(u32, lanes.a[i] + 4 * j, w->v[src + j][i]); \
  }

#define GLOBAL_PARAMETERS() Wave *w, u32 site, i32 row, i32 wide, u64 base
#define NEAR_PARAMETERS() Wave *w, u32 site, i32 row, u32 base
#define GLOBAL_LANES(size, kind) global_lanes(w, site, row, wide, base, size, kind, &lanes)
#define FLAT_LANES(size, kind) flat_lanes(w, site, row, wide, base, size, kind, &lanes)
#define LDS_LANES(size, kind) lds_lanes(w, site, row, base, size, &lanes)
#define BUFFER_PARAMETERS() Wave *w, u32 site, i32 row, u32 flags, u32 descriptor, u32 offset
#define BUFFER_LANES(size, kind) \
  buffer_lanes(w, site, row, flags, descriptor, offset, size, kind, &lanes)
#define SCRATCH_LANES(size, kind) scratch_lanes(w, site, row, base, size, &lanes)

#define LOAD(space, PARAMETERS, RESOLVE, name, size, keeps, body)                             \
  i32 space##_load_##name(PARAMETERS(), i32 dst) {                                            \
    const u64 exec = exec_of(w);                                                              \
    Lanes lanes;                                                                              \
    if (!exec) return 0;                                                                      \
    if (RESOLVE(size, GLOBAL_LOAD)) return 1;                                                 \
    if (__builtin_expect(w->observer != 0, 0)) {                                              \
      if (sanitize_lanes(w, site, lanes.a, size, READ_BIT)) return 1;                         \
      note_load(w, lanes.a, size, dst, size > 4 ? size / 4 : 1, keeps);                       \
    }                                                                                         \
    body;                                                                                     \
    return 0;                                                                                 \
  }
#define STORE(space, PARAMETERS, RESOLVE, name, size, body)                                   \
  i32 space##_store_##name(PARAMETERS(), i32 src) {                                           \
    const u64 exec = exec_of(w);                                                              \
    Lanes lanes;                                                                              \
    if (!exec) return 0;                                                                      \
    if (RESOLVE(size, GLOBAL_STORE)) return 1;                                                \
    if (__builtin_expect(w->observer != 0, 0)) {                                              \
      if (sanitize_lanes(w, site, lanes.a, size, WRITTEN_BIT)) return 1;                      \
      note_store(w, lanes.a, size, src, size > 4 ? size / 4 : 1);                             \
    }                                                                                         \
    body;                                                                                     \
    return 0;                                                                                 \
  }
#define EACH_STORE(type, value) FOR_ACTIVE(i, exec) POKE(type, lanes.a[i], (type)(value))

#define ACCESSES(space, PARAMETERS, RESOLVE)                                             \
  LOAD(space, PARAMETERS, RESOLVE, u8, 1, 0, READ_LANES(u8, WHOLE))                         \
  LOAD(space, PARAMETERS, RESOLVE, i8, 1, 0, READ_LANES(i8, WHOLE))                         \
  LOAD(space, PARAMETERS, RESOLVE, u16, 2, 0, READ_LANES(u16, WHOLE))                       \
  LOAD(space, PARAMETERS, RESOLVE, i16, 2, 0, READ_LANES(i16, WHOLE))                       \
  LOAD(space, PARAMETERS, RESOLVE, u8_lo, 1, 1, READ_LANES(u8, LOW_HALF))                   \
  LOAD(space, PARAMETERS, RESOLVE, u8_hi, 1, 1, READ_LANES(u8, HIGH_HALF))                  \
  LOAD(space, PARAMETERS, RESOLVE, i8_lo, 1, 1, READ_LANES(i8, LOW_HALF))                   \
  LOAD(space, PARAMETERS, RESOLVE, i8_hi, 1, 1, READ_LANES(i8, HIGH_HALF))                  \
  LOAD(space, PARAMETERS, RESOLVE, u16_lo, 2, 1, READ_LANES(u16, LOW_HALF))                 \
  LOAD(space, PARAMETERS, RESOLVE, u16_hi, 2, 1, READ_LANES(u16, HIGH_HALF))                \
  LOAD(space, PARAMETERS, RESOLVE, b32, 4, 0, READ_LANES(u32, WHOLE))                       \
  LOAD(space, PARAMETERS, RESOLVE, b64, 8, 0, READ_DWORDS(2))                               \
  LOAD(space, PARAMETERS, RESOLVE, b96, 12, 0, READ_DWORDS(3))                              \
  LOAD(space, PARAMETERS, RESOLVE, b128, 16, 0, READ_DWORDS(4))                             \
  STORE(space, PARAMETERS, RESOLVE, b8, 1, EACH_STORE(u8, w->v[src][i]))                 \
  STORE(space, PARAMETERS, RESOLVE, b8_hi, 1, EACH_STORE(u8, w->v[src][i] >> 16))        \
  STORE(space, PARAMETERS, RESOLVE, b16, 2, EACH_STORE(u16, w->v[src][i]))               \
  STORE(space, PARAMETERS, RESOLVE, b16_hi, 2, EACH_STORE(u16, w->v[src][i] >> 16))      \
  STORE(space, PARAMETERS, RESOLVE, b32, 4, WRITE_DWORDS(1))                             \
  STORE(space, PARAMETERS, RESOLVE, b64, 8, WRITE_DWORDS(2))                             \
  STORE(space, PARAMETERS, RESOLVE, b96, 12, WRITE_DWORDS(3))                            \
  STORE(space, PARAMETERS, RESOLVE, b128, 16, WRITE_DWORDS(4))

ACCESSES(global, GLOBAL_PARAMETERS, GLOBAL_LANES)
ACCESSES(flat, GLOBAL_PARAMETERS, FLAT_LANES)
ACCESSES(lds, NEAR_PARAMETERS, LDS_LANES)
ACCESSES(scratch, NEAR_PARAMETERS, SCRATCH_LANES)
ACCESSES(buffer, BUFFER_PARAMETERS, BUFFER_LANES)

// ds_read2: both elements are loaded before a register is written.
#define LOAD2(bits, n)                                                                 \
  i32 lds_load2_b##bits(Wave* w, u32 site, i32 row, u32 base0, u32 base1, i32 dst) {   \
    const u64 exec = exec_of(w);                                                       \
    Lanes first, second;                                                               \
    if (lds_lanes(w, site, row, base0, 4 * n, &first)) return 1;                       \
    if (lds_lanes(w, site, row, base1, 4 * n, &second)) return 1;                      \
    if (__builtin_expect(w->observer != 0, 0)) {                                       \
      if (sanitize_lanes(w, site, first.a, 4 * n, READ_BIT)) return 1;                 \
      if (sanitize_lanes(w, site, second.a, 4 * n, READ_BIT)) return 1;                \
      note_load(w, first.a, 4 * n, dst, n, 0);                                         \
      note_load(w, second.a, 4 * n, dst + n, n, 0);                                    \
    }                                                                                  \
    FOR_ACTIVE(i, exec)                                                                \
      for (int j = 0; j < n; j++) {                                                    \
        w->v[dst + j][i] = PEEK(u32, first.a[i] + 4 * j);                              \
        w->v[dst + n + j][i] = PEEK(u32, second.a[i] + 4 * j);                         \
      }                                                                                \
    return 0;                                                                          \
  }
LOAD2(32, 1)
LOAD2(64, 2)
