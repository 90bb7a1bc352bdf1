// What translated code calls: memory accesses of a wave, lane functions, and the loop over
// workgroups. Freestanding C for the host; every function that can fault returns nonzero then.
// The state's layout is given by -DOFFSET_* (layout.py) and asserted here.

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int8_t i8;
typedef int16_t i16;

enum { LANES = 64, RECENT = 16 };
enum { ENDED = -1, BARRIER = -2, FAULTED = -3, RUNAWAY = -4, WAITING = -5 };
enum {
  GLOBAL_LOAD, GLOBAL_STORE, LDS_ACCESS, SCRATCH_ACCESS, BAD_JUMP, TRAP,
  MISALIGNED, UNDEFINED, RACE, BAD_BARRIER, WAITCNT, BAD_DESCRIPTOR,
  MIXED_ROUNDING
};
enum { SHARED_APERTURE = 0x00010000, PRIVATE_APERTURE = 0x00020000 };
enum { READ_BIT = 1, WRITTEN_BIT = 2, DEFINED_BIT = 4 };

// Live allocations, sorted by address; `shadow` is the distance to one log byte a byte.
typedef struct {
  u64 count;
  const u64 *begin, *end;
  u64 watch;
  int64_t shadow;
  u64 base, touched;  // start of the arena, and of its race records
} Memory;

typedef struct {
  u64 begin, end, index;
} Range;

struct Observer;

// What memory instructions did, for attestation and evidence; `by_buffer` is (read, written)
// bytes of each live allocation.
typedef struct {
  u64 loads, load_bytes, load_lines, load_wide_bytes;
  u64 stores, store_bytes;
  u64 lds_accesses, lds_passes;
  u64 flight_peak;
  u64 (*by_buffer)[2];
  u64 stamp, seen[256][2];  // lines of the current instruction
} Counters;

typedef struct Wave {
  u32 s[128];
  u32 scc, mode;
  i32 pc;
  u32 site;
  int64_t budget;
  u8* lds;
  u64 lds_bytes;
  u8* scratch;
  u64 scratch_stride;
  u64* counts;
  u64 code_base;
  u64 fault_address;
  u32 fault_lane, fault_kind;
  u32 workgroup[3];
  u32 wave_index;
  Memory* memory;
  const i32* jumps;
  u64 text;
  u64 text_words;
  struct Observer* observer;
  Counters* counters;
  u32 vm_issued, vm_done, vm_peak;
  u8 pad0[OFFSET_RECENT - OFFSET_VM_PEAK - 4];
  Range recent[RECENT];
  u8 pad1[OFFSET_TEMP - OFFSET_RECENT - sizeof(Range) * RECENT];
  double temp[LANES];
  u8 pad2[OFFSET_VGPR - OFFSET_TEMP - 8 * LANES];
  u32 v[512][LANES];
} Wave;

#define AT(field, name) _Static_assert(offsetof(Wave, field) == OFFSET_##name, #name)
AT(s, SGPR);
AT(scc, SCC);
AT(mode, MODE);
AT(pc, PC);
AT(site, SITE);
AT(budget, BUDGET);
AT(lds, LDS);
AT(lds_bytes, LDS_BYTES);
AT(scratch, SCRATCH);
AT(scratch_stride, SCRATCH_STRIDE);
AT(counts, COUNTS);
AT(code_base, CODE_BASE);
AT(fault_address, FAULT_ADDRESS);
AT(fault_lane, FAULT_LANE);
AT(fault_kind, FAULT_KIND);
AT(workgroup, WORKGROUP);
AT(wave_index, WAVE_INDEX);
AT(memory, MEMORY);
AT(jumps, JUMPS);
AT(text, TEXT);
AT(text_words, TEXT_WORDS);
AT(observer, OBSERVER);
AT(counters, COUNTERS);
AT(vm_issued, VM_ISSUED);
AT(vm_done, VM_DONE);
AT(vm_peak, VM_PEAK);
AT(recent, RECENT);
AT(temp, TEMP);
AT(v, VGPR);
_Static_assert(sizeof(Wave) == OFFSET_WAVE_BYTES, "WAVE_BYTES");

static inline u64 exec_of(const Wave* w) { return w->s[126] | (u64)w->s[127] << 32; }
static inline u64 bit(u32 lane) { return (u64)1 << lane; }

#define FOR_ACTIVE(i, mask) \
  for (u64 left_ = (mask), i = 0; left_ && ((i = __builtin_ctzll(left_)), 1); left_ &= left_ - 1)

static i32 fault(Wave* w, u32 site, u32 lane, u64 address, u32 kind) {
  w->site = site;
  w->fault_lane = lane;
  w->fault_address = address;
  w->fault_kind = kind;
  return 1;
}

#include "sanitize.h"

// ---- Global memory -------------------------------------------------------------------------

static int find_range(const Memory* m, u64 address, u64 size, Range* out) {
  u64 low = 0, high = m->count;
  while (low < high) {
    u64 middle = (low + high) / 2;
    if (m->begin[middle] <= address)
      low = middle + 1;
    else
      high = middle;
  }
  if (!low || size > m->end[low - 1] - m->begin[low - 1] ||
      address > m->end[low - 1] - size)
    return 0;
  out->begin = m->begin[low - 1];
  out->end = m->end[low - 1];
  out->index = low - 1;
  return 1;
}

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

// 128-byte lines that the active lanes touch. Lanes mostly walk upward through memory, so a line
// is new unless it was seen: only a step back needs the table of lines seen.
static u64 distinct_lines(Counters* c, const u64* a, u64 exec, u64 size) {
  u64 count = 0, last = 0, high = 0;
  int monotone = 1;
  FOR_ACTIVE(i, exec) {
    const u64 begin = a[i] / 128, end = (a[i] + size - 1) / 128;
    monotone &= begin >= last;
    last = begin;
    count += (begin > high) + (end > high && end > begin);
    high = end > high ? end : high;
  }
  if (monotone) return count;
  const u64 stamp = ++c->stamp;
  count = 0;
  FOR_ACTIVE(i, exec)
    for (u64 line = a[i] / 128; line <= (a[i] + size - 1) / 128; line++) {
      u32 slot = (u32)(line * 0x9e3779b97f4a7c15u >> 56);
      while (c->seen[slot][0] == stamp && c->seen[slot][1] != line) slot = (slot + 1) % 256;
      count += c->seen[slot][0] != stamp;
      c->seen[slot][0] = stamp, c->seen[slot][1] = line;
    }
  return count;
}

static void count_access(Wave* w, u32 site, const u64* a, u64 size, int store) {
  Counters* c = w->counters;
  const u64 exec = exec_of(w), bytes = size * __builtin_popcountll(exec);
  if (store)
    c->stores++, c->store_bytes += bytes;
  else
    c->loads++, c->load_bytes += bytes, c->load_wide_bytes += size == 16 ? bytes : 0;
  Range own = w->recent[site % RECENT];
  u64 different = ~exec, outside = 0;
  for (int i = 0; i < LANES; i++) {
    different |= a[i] ^ (a[0] + i * size);
    outside |= (a[i] - own.begin >= own.end - own.begin) & (exec >> i);
  }
  if (!store)
    c->load_lines += different ? distinct_lines(c, a, exec, size)
                               : (a[0] + LANES * size - 1) / 128 - a[0] / 128 + 1;
  if (!(outside & 1)) {
    c->by_buffer[own.index][store] += bytes;
    return;
  }
  FOR_ACTIVE(i, exec) {
    if (a[i] - own.begin >= own.end - own.begin) find_range(w->memory, a[i], size, &own);
    c->by_buffer[own.index][store] += size;
  }
}

// Passes of an LDS access: 32 banks of 4 bytes, half a wave at a time (dword by dword for wider
// elements); a pass serves one address a bank.
static void count_lds(Wave* w, const u64* a, u64 size) {
  const u64 exec = exec_of(w), words = (size + 3) / 4;
  u64 apart = ~exec, together = ~exec;
  for (int i = 0; i < LANES; i++) {
    apart |= a[i] ^ (a[0] + 4 * i);
    together |= a[i] ^ a[0];
  }
  w->counters->lds_accesses++;
  if ((!apart && words == 1) || !together) {
    w->counters->lds_passes += 2 * words;
    return;
  }
  for (u64 word = 0; word < words; word++)
    for (int half = 0; half < 2; half++) {
      u64 first[32], most = 0;
      u32 uses[32] = {0};
      FOR_ACTIVE(i, exec & (half ? 0xffffffff00000000u : 0xffffffffu)) {
        const u64 dword = (a[i] - (u64)w->lds) / 4 + word;
        const u32 bank = dword % 32;
        if (!uses[bank] || first[bank] != dword) uses[bank]++, first[bank] = dword;
        most = uses[bank] > most ? uses[bank] : most;
      }
      w->counters->lds_passes += most;
    }
}

static void log_access(Wave* w, const u64* a, u64 exec, u64 size, u8 mark) {
  FOR_ACTIVE(i, exec)
    for (u64 b = 0; b < size; b++) *(u8*)(a[i] + b + w->memory->shadow) |= mark;
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

static i32 global_lanes(Wave* w, u32 site, i32 row, i32 wide, u64 base, u64 size, u32 kind,
                        Lanes* lanes) {
  if (resolve(w, site, row, wide, base, size, kind, lanes->a)) return 1;
  if (__builtin_expect(w->memory->watch, 0))
    log_access(w, lanes->a, exec_of(w), size, kind == GLOBAL_LOAD ? READ_BIT : WRITTEN_BIT);
  if (__builtin_expect(w->counters != 0, 0))
    count_access(w, site, lanes->a, size, kind != GLOBAL_LOAD);
  return 0;
}

static i32 lds_lanes(Wave* w, u32 site, i32 row, u32 base, u64 size, Lanes* lanes) {
  const u64 exec = exec_of(w);
  const u32* address = w->v[row];
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
  if (d[1] >> 31 || d[3] >> 23 & 1) return fault(w, site, 0, base, BAD_DESCRIPTOR);
  FOR_ACTIVE(i, exec_of(w)) {
    const u32 index = flags & 2 ? w->v[row][i] : 0;
    const u32 voffset = flags & 1 ? w->v[row + (flags & 2 ? 1 : 0)][i] : 0;
    const u64 at = (u64)stride * index + voffset + offset;
    const int outside = stride && (flags & 2) ? index >= records : at + size > records;
    if (outside) {
      lanes->a[i] = (u64)(kind == GLOBAL_LOAD ? kZeros : sink);
      continue;
    }
    lanes->a[i] = base + at;
    if (lanes->a[i] - range->begin >= range->end - range->begin ||
        range->end - lanes->a[i] < size)
      if (!find_range(w->memory, lanes->a[i], size, range))
        return fault(w, site, i, lanes->a[i], kind);
    if (w->memory->watch)
      for (u64 b = 0; b < size; b++)
        *(u8*)(lanes->a[i] + b + w->memory->shadow) |=
            kind == GLOBAL_LOAD ? READ_BIT : WRITTEN_BIT;
  }
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

i32 scalar_load(Wave* w, u32 site, u64 address, u32 dst, u32 dwords) {
  Range* range = &w->recent[site % RECENT];
  const u64 size = 4 * (u64)dwords;
  if (address & 3 && w->observer && (w->observer->checks & CHECK_MEMORY))
    return fault(w, site, 0, address, MISALIGNED);
  address &= ~(u64)3;  // as the hardware does
  if (range->end - range->begin < size || address - range->begin > range->end - range->begin - size)
    if (!find_range(w->memory, address, size, range))
      return fault(w, site, 0, address, GLOBAL_LOAD);
  for (u32 j = 0; j < dwords; j++) w->s[dst + j] = PEEK(u32, address + 4 * j);
  if (__builtin_expect(w->observer != 0, 0)) scalar_defined(w, address, size, dst);
  if (__builtin_expect(w->memory->watch, 0))
    for (u64 b = 0; b < size; b++) *(u8*)(address + b + w->memory->shadow) |= READ_BIT;
  return 0;
}

i32 scalar_buffer_load(Wave* w, u32 site, u32 descriptor, u32 offset, u32 dst, u32 dwords) {
  const u32 d[4] = {w->s[descriptor], w->s[descriptor + 1], w->s[descriptor + 2],
                    w->s[descriptor + 3]};
  const u64 base = (d[0] | (u64)d[1] << 32) & 0xffffffffffffu;
  const u32 stride = d[1] >> 16 & 0x3fff;
  const u64 bytes = stride ? (u64)stride * d[2] : d[2];
  offset &= ~3u;
  for (u32 j = 0; j < dwords; j++) {
    const u64 at = offset + 4 * (u64)j;
    w->s[dst + j] = 0;
    if (at + 4 <= bytes && scalar_load(w, site, base + at, dst + j, 1)) return 1;
  }
  return 0;
}

// Loads straight to LDS at M0 + offset + 4 * lane.
static i32 to_lds(Wave* w, u32 site, const Lanes* lanes, u32 offset) {
  const u64 exec = exec_of(w);
  FOR_ACTIVE(i, exec) {
    const u64 at = (w->s[124] & 0xffff) + offset + 4 * i;
    if (at + 4 > w->lds_bytes) return fault(w, site, i, at, LDS_ACCESS);
    *(u32*)(w->lds + at) = PEEK(u32, lanes->a[i]);
    if (w->observer && (w->observer->checks & CHECK_INIT))
      for (int b = 0; b < 4; b++) w->observer->lds_defined[at + b] = 1;
  }
  return 0;
}

i32 global_to_lds(Wave* w, u32 site, i32 row, i32 wide, u64 base, u32 offset) {
  Lanes lanes;
  if (global_lanes(w, site, row, wide, base, 4, GLOBAL_LOAD, &lanes)) return 1;
  return to_lds(w, site, &lanes, offset);
}

i32 buffer_to_lds(Wave* w, u32 site, i32 row, u32 flags, u32 descriptor, u32 offset, u32 place) {
  Lanes lanes;
  if (buffer_lanes(w, site, row, flags, descriptor, offset, 4, GLOBAL_LOAD, &lanes)) return 1;
  return to_lds(w, site, &lanes, place);
}

// ---- Atomics -------------------------------------------------------------------------------

enum {  // the order of memory_ops.ATOMICS
  SWAP, CMPSWAP, ADD, SUB, SMIN, UMIN, SMAX, UMAX, AND, OR, XOR, INC, DEC,
  ADD_F32, ADD_F64, MIN_F64, MAX_F64, PK_ADD_F16, PK_ADD_BF16,
  RSUB, MIN_F32, MAX_F32, MSKOR, CMPSWAP_F32, CMPSWAP_F64
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

// Lane by lane in ascending order, each indivisible: workgroups run on several threads.
static void atomics(Wave* w, const Lanes* lanes, u64 exec, i32 src, i32 compare_row, i32 dst,
                    u32 operation, i32 dwords) {
  FOR_ACTIVE(i, exec) {
    u64 x = w->v[src][i], compare = compare_row < 0 ? 0 : w->v[compare_row][i], old;
    if (dwords == 2) {
      x |= (u64)w->v[src + 1][i] << 32;
      if (compare_row >= 0) compare |= (u64)w->v[compare_row + 1][i] << 32;
      u64* p = (u64*)lanes->a[i];
      old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
      while (!__atomic_compare_exchange_n(p, &old, combine(operation, old, x, compare, 1), 0,
                                          __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
      }
    } else {
      u32* p = (u32*)lanes->a[i];
      u32 seen = __atomic_load_n(p, __ATOMIC_SEQ_CST);
      while (!__atomic_compare_exchange_n(p, &seen, (u32)combine(operation, seen, x, compare, 0),
                                          0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
      }
      old = seen;
    }
    if (dst >= 0) {
      w->v[dst][i] = (u32)old;
      if (dwords == 2) w->v[dst + 1][i] = (u32)(old >> 32);
    }
  }
}

#define MEMORY_ATOMIC(space, PARAMETERS, RESOLVE)                                            \
  i32 space##_atomic(PARAMETERS(), i32 src, i32 dst, u32 operation, i32 dwords) {       \
    Lanes lanes;                                                                             \
    if (RESOLVE(4 * (u64)dwords, GLOBAL_STORE)) return 1;                                    \
    const u64 exec = exec_of(w);                                                             \
    if (exec && w->observer) {                                                               \
      if (sanitize_lanes(w, site, lanes.a, 4 * (u64)dwords, ATOMIC_ACCESS)) return 1;        \
      if (dst >= 0) note_load(w, lanes.a, 4 * (u64)dwords, dst, dwords, 0);                  \
    }                                                                                        \
    /* Global compare-and-swap keeps the new value first and the comparand after it. */      \
    atomics(w, &lanes, exec, src, operation == CMPSWAP ? src + dwords : -1, dst, operation,  \
            dwords);                                                                         \
    return 0;                                                                                \
  }
MEMORY_ATOMIC(global, GLOBAL_PARAMETERS, GLOBAL_LANES)
MEMORY_ATOMIC(flat, GLOBAL_PARAMETERS, FLAT_LANES)
MEMORY_ATOMIC(buffer, BUFFER_PARAMETERS, BUFFER_LANES)

// DS compare-and-store has the comparand in the first data register and the new value after it;
// mask-or likewise the mask, then the bits.
i32 lds_atomic(Wave* w, u32 site, i32 row, u32 base, i32 data, i32 data2, i32 dst, u32 operation,
               i32 dwords) {
  Lanes lanes;
  if (lds_lanes(w, site, row, base, 4 * (u64)dwords, &lanes)) return 1;
  if (exec_of(w) && w->observer) {
    if (sanitize_lanes(w, site, lanes.a, 4 * (u64)dwords, ATOMIC_ACCESS)) return 1;
    if (dst >= 0) note_load(w, lanes.a, 4 * (u64)dwords, dst, dwords, 0);
  }
  const int swap = operation == CMPSWAP || operation >= MSKOR;
  atomics(w, &lanes, exec_of(w), swap ? data2 : data, swap ? data : -1, dst, operation, dwords);
  return 0;
}

// ---- Lanes ---------------------------------------------------------------------------------

i32 lds_bpermute(Wave* w, u32 site, i32 dst, i32 address, i32 data, u32 offset) {
  const u64 exec = exec_of(w);
  u32 out[LANES];
  for (int i = 0; i < LANES; i++) {
    u32 from = (w->v[address][i] + offset) / 4 % LANES;
    out[i] = exec >> from & 1 ? w->v[data][from] : 0;
  }
  FOR_ACTIVE(i, exec) w->v[dst][i] = out[i];
  return 0;
}

i32 lds_permute(Wave* w, u32 site, i32 dst, i32 address, i32 data, u32 offset) {
  const u64 exec = exec_of(w);
  u32 out[LANES] = {0};
  FOR_ACTIVE(i, exec) out[(w->v[address][i] + offset) / 4 % LANES] = w->v[data][i];
  FOR_ACTIVE(i, exec) w->v[dst][i] = out[i];
  return 0;
}

double exp2(double);
double log2(double);
double sin(double);
double cos(double);
double floor(double);

static const double kTurn = 6.283185307179586;
#define LANE_FUNCTION(name, value)                         \
  void lanes_##name(double* x) {                           \
    for (int i = 0; i < LANES; i++) {                      \
      const double t = x[i];                               \
      x[i] = value;                                        \
    }                                                      \
  }
LANE_FUNCTION(exp2, exp2(t))
LANE_FUNCTION(log2, log2(t))
LANE_FUNCTION(sin_turns, sin(kTurn*(t - floor(t))))
LANE_FUNCTION(cos_turns, cos(kTurn*(t - floor(t))))

// ---- Rounding ------------------------------------------------------------------------------

// MODE bits 1:0 round f32, 3:2 f16 and f64: nearest even, up, down, toward zero. The host has one
// rounding for both widths, so they must agree.
static u32 rounding_of(u32 mode) {
  static const u32 host[4] = {0, 2, 1, 3};
  return host[mode & 3] << 13;
}
static void round_host(u32 bits) {
  const u32 control = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr((control & ~0x6000u) | bits);
}

i32 set_rounding(Wave* w, u32 site) {
  if ((w->mode & 3) != (w->mode >> 2 & 3)) return fault(w, site, 0, w->mode, MIXED_ROUNDING);
  round_host(rounding_of(w->mode));
  return 0;
}

// ---- Matrix cores -------------------------------------------------------------------------

#include "mfma.h"

// ---- Control -------------------------------------------------------------------------------

// Block of an indirect jump, or FAULTED.
i32 jump_to(Wave* w, u32 site, u64 address) {
  const u64 word = (address - w->text) / 4;
  if (address % 4 || word >= w->text_words || w->jumps[word] < 0) {
    fault(w, site, 0, address, BAD_JUMP);
    return FAULTED;
  }
  if (w->budget < 0) {
    w->site = site;
    return RUNAWAY;
  }
  return w->jumps[word];
}

i32 trap(Wave* w, u32 site) { return fault(w, site, 0, 0, TRAP); }

typedef i32 (*Piece)(Wave*, i32);

typedef struct {
  const Piece* pieces;  // by block
  Memory* memory;
  const i32* jumps;
  u64 code_base, text, text_words;
  u64 kernarg, dispatch_packet, queue;
  u32 grid[3], block[3];
  u32 properties, preload, rsrc2, mode;
  u32 vgpr_rows, accum_rows, waves;
  i32 entry;
  u64 lds_bytes, scratch_stride;
  int64_t budget;
  u32 checks, pad;
  const Effect* effects;
} Launch;

u64 observer_bytes(void) { return sizeof(Observer); }

// Per-thread sanitizer state.
typedef struct {
  Observer* observers;  // one a wave
  u8* lds_defined;
  Touch* lds_touched;
} Sanitizer;

typedef struct {
  i32 status;  // 0, FAULTED or RUNAWAY
  u32 wave, workgroup[3], site, lane, kind;
  u64 address;
  u64 barriers;
} Outcome;

static u32* push(u32* s, u64 value) {
  *s++ = (u32)value;
  *s++ = (u32)(value >> 32);
  return s;
}

// User SGPRs in the order of the descriptor's property bits, then workgroup ids (LLVM AMDGPU
// usage, "Initial Kernel Execution State").
static u32 init_sgprs(const Launch* l, Wave* w) {
  u32* s = w->s;
  const u32 p = l->properties;
  if (p & 1) s = push(push(s, 0), 0);
  if (p & 2) s = push(s, l->dispatch_packet);
  if (p & 4) s = push(s, l->queue);
  if (p & 8) s = push(s, l->kernarg);
  if (p & 16) s = push(s, 0);
  if (p & 32) s = push(s, 0);
  const u32 length = l->preload & 0x7f, offset = l->preload >> 7;
  for (u32 j = 0; j < length; j++) *s++ = PEEK(u32, l->kernarg + 4 * (offset + j));
  s = w->s + (l->rsrc2 >> 1 & 0x1f);
  for (int axis = 0; axis < 3; axis++)
    if (l->rsrc2 >> (7 + axis) & 1) *s++ = w->workgroup[axis];
  if (l->rsrc2 >> 10 & 1) *s++ = l->waves;
  return (u32)(s - w->s);
}

enum { POISON = 0x7fc0dead };  // registers and LDS hold no useful value before they are written

static void init_wave(const Launch* l, Wave* w, u32 index) {
  const u32 items = l->block[0] * l->block[1] * l->block[2];
  for (int i = 0; i < 128; i++) w->s[i] = POISON;
  w->scc = 0;
  w->mode = l->mode;
  w->pc = l->entry;
  w->budget = l->budget;
  w->scratch_stride = l->scratch_stride;
  w->lds_bytes = l->lds_bytes;
  w->code_base = l->code_base;
  w->memory = l->memory;
  w->jumps = l->jumps;
  w->text = l->text;
  w->text_words = l->text_words;
  w->wave_index = index;
  w->vm_issued = w->vm_done = w->vm_peak = 0;
  const u32 initial = init_sgprs(l, w);
  if (w->observer) observe_start(w, initial);
  u64 exec = 0;
  for (u32 row = 0; row < l->vgpr_rows; row++)
    for (int i = 0; i < LANES; i++) w->v[row][i] = POISON;
  for (u32 row = 0; row < l->accum_rows; row++)
    for (int i = 0; i < LANES; i++) w->v[256 + row][i] = POISON;
  for (u32 i = 0; i < LANES; i++) {
    const u32 item = LANES * index + i;
    if (item < items) exec |= bit(i);
    const u32 x = item % l->block[0], y = item / l->block[0] % l->block[1];
    w->v[0][i] = x | y << 10 | item / (l->block[0] * l->block[1]) << 20;
  }
  w->s[126] = (u32)exec;
  w->s[127] = (u32)(exec >> 32);
}

static i32 run_wave(const Launch* l, Wave* w) {
  i32 block = w->pc;
  if (w->mode & 15 && set_rounding(w, 0)) return FAULTED;
  while (block >= 0) block = l->pieces[block](w, block);
  round_host(0);
  return block;
}

static void report(const Wave* w, u32 index, i32 status, Outcome* out) {
  out->status = status;
  out->wave = index;
  out->site = w->site;
  out->lane = w->fault_lane;
  out->kind = w->fault_kind;
  out->address = w->fault_address;
  for (int axis = 0; axis < 3; axis++) out->workgroup[axis] = w->workgroup[axis];
}

static u32 next_epoch(void) {
  static u32 epoch;
  return __atomic_add_fetch(&epoch, 1, __ATOMIC_RELAXED);
}

// Under the race sanitizer a barrier must be reached by every wave, all at the same instruction.
static i32 check_barrier(Wave* waves, const i32* states, u32 count) {
  i32 at = 0, ended = 0, waiting = 0;
  for (u32 i = 0; i < count; i++) {
    if (states[i] == ENDED) {
      ended = 1;
      continue;
    }
    if (waiting && waves[i].pc != at) return (i32)i;
    at = waves[i].pc, waiting = 1;
  }
  if (waiting && ended)
    for (u32 i = 0; i < count; i++)
      if (states[i] != ENDED) return (i32)i;
  return -1;
}

// One workgroup: each wave runs to a barrier or its end; the barrier opens when all that are
// left have reached it.
static i32 run_group(const Launch* l, Wave* waves, i32* states, Outcome* out) {
  u32 left = l->waves;
  for (u32 i = 0; i < l->waves; i++) states[i] = 0;
  while (left) {
    const u32 epoch = l->checks & CHECK_RACE ? next_epoch() : 0;
    for (u32 i = 0; i < l->waves; i++) {
      if (states[i] == ENDED) continue;
      if (l->checks) waves[i].observer->epoch = epoch;
      const i32 status = run_wave(l, &waves[i]);
      if (status == ENDED) {
        states[i] = ENDED;
        left--;
      } else if (status == BARRIER) {
        out->barriers++;
      } else {
        report(&waves[i], i, status, out);
        return 1;
      }
    }
    if (l->checks & CHECK_RACE) {
      const i32 odd = check_barrier(waves, states, l->waves);
      if (odd >= 0) {
        waves[odd].fault_kind = BAD_BARRIER;
        waves[odd].fault_lane = 0;
        waves[odd].fault_address = 0;
        report(&waves[odd], (u32)odd, FAULTED, out);
        return 1;
      }
    }
  }
  return 0;
}

// Workgroups first, first + step, ... below the grid's size, on this thread's own state.
void run_groups(const Launch* l, Wave* waves, i32* states, u8* lds, u8* scratch, u64* counts,
                Counters* counters, const Sanitizer* sanitizer, u64 first, u64 step,
                Outcome* out) {
  const u64 total = (u64)l->grid[0] * l->grid[1] * l->grid[2];
  for (u32 i = 0; i < l->waves; i++) {
    waves[i].lds = lds;
    waves[i].scratch = scratch + i * LANES * l->scratch_stride;
    waves[i].counts = counts;
    waves[i].counters = counters;
    waves[i].observer = l->checks ? &sanitizer->observers[i] : 0;
    if (l->checks) {
      waves[i].observer->checks = l->checks;
      waves[i].observer->effects = l->effects;
      waves[i].observer->lds_defined = sanitizer->lds_defined;
      waves[i].observer->lds_touched = sanitizer->lds_touched;
    }
    for (int r = 0; r < RECENT; r++) waves[i].recent[r].begin = waves[i].recent[r].end = 0;
  }
  for (u64 group = first; group < total; group += step) {
    for (u64 b = 0; b < l->lds_bytes / 4; b++) ((u32*)lds)[b] = POISON;
    if (l->checks & CHECK_INIT)
      for (u64 b = 0; b < l->lds_bytes; b++) sanitizer->lds_defined[b] = 0;
    for (u32 i = 0; i < l->waves; i++) {
      waves[i].workgroup[0] = group % l->grid[0];
      waves[i].workgroup[1] = group / l->grid[0] % l->grid[1];
      waves[i].workgroup[2] = group / l->grid[0] / l->grid[1];
      init_wave(l, &waves[i], i);
    }
    if (run_group(l, waves, states, out)) return;
    for (u32 i = 0; counters && i < l->waves; i++)
      if (waves[i].vm_peak > counters->flight_peak) counters->flight_peak = waves[i].vm_peak;
  }
}
