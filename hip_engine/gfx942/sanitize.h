// The sanitizers where memory is accessed: alignment, races, and marks of the bytes written.

#pragma once

#include "observer.h"

static inline u8* log_of(const Wave* w, u64 address) {
  return (u8*)(address + w->memory->shadow);
}
static inline int is_lds(const Wave* w, u64 address) {
  return address - (u64)w->lds < w->lds_bytes;
}
// Buffer accesses outside their buffer go to a sink of the runtime, not to device memory.
static inline int is_device(const Wave* w, u64 address) {
  return address - w->memory->base < OFFSET_ARENA_BYTES;
}
static inline int is_scratch(const Wave* w, u64 address) {
  return address - (u64)w->scratch < w->scratch_stride * LANES * MAX_WAVES;
}
// Address as a report names it: a byte of LDS or of the lane's scratch, or of device memory.
static u64 reported(const Wave* w, u64 address) {
  if (is_lds(w, address)) return address - (u64)w->lds;
  if (is_scratch(w, address)) return (address - (u64)w->scratch) % w->scratch_stride;
  return address;
}

enum { ATOMIC_ACCESS = 3, TOUCHED_AT_ONCE = 16 };

// What a wave may not find in a Touch (as one word), and what it leaves there.
typedef struct {
  u64 epoch, me, writer_too, readers, keep, set;
} TouchRule;

static TouchRule rule_of(const Wave* w, int how) {
  const u64 me = w->wave_index + 1, mine = (u64)1 << (48 + (w->wave_index & 15));
  const u64 others = 0xffff000000000000u & ~mine, writer = (u64)0xff << 32;
  const u64 epoch = w->observer->epoch;
  if (how == READ_BIT) return (TouchRule){epoch, me, me, 0, ~(u64)0, mine};
  if (how == WRITTEN_BIT) return (TouchRule){epoch, me, me, others, ~writer, me << 32};
  const u64 atomic = ATOMIC_WRITER;
  return (TouchRule){epoch, me, atomic, others, ~writer, atomic << 32};
}

// Nonzero if a byte was touched otherwise by another wave since the last barrier; else marks all.
static inline __attribute__((always_inline)) u64 touch_bytes(u64* t, u64 size, TouchRule rule) {
  u64 bad = 0, next[TOUCHED_AT_ONCE];
  for (u64 b = 0; b < size; b++) {
    const u64 seen = (t[b] & 0xffffffffu) == rule.epoch ? t[b] : rule.epoch;
    const u64 writer = seen >> 32 & 0xff;
    bad |= (seen & rule.readers) |
           (u64)((writer != 0) & (writer != rule.me) & (writer != rule.writer_too));
    next[b] = (seen & rule.keep) | rule.set;
  }
  if (bad) return bad;
  for (u64 b = 0; b < size; b++) t[b] = next[b];
  return 0;
}

static u64 touch_sized(u64* t, u64 size, TouchRule rule) {
  if (size == 4) return touch_bytes(t, 4, rule);
  if (size == 16) return touch_bytes(t, 16, rule);
  if (size == 8) return touch_bytes(t, 8, rule);
  if (size == 2) return touch_bytes(t, 2, rule);
  return touch_bytes(t, size, rule);
}

static i32 touch(Wave* w, u32 site, u32 lane, u64* t, u64 size, u64 address, TouchRule rule) {
  for (u64 begin = 0; begin < size; begin += TOUCHED_AT_ONCE) {
    const u64 rest = size - begin, some = rest < TOUCHED_AT_ONCE ? rest : TOUCHED_AT_ONCE;
    if (__builtin_expect(!touch_sized(t + begin, some, rule), 1)) continue;
    u64 first = begin;
    while (first + 1 < begin + some && !touch_bytes(t + first, 1, rule)) first++;
    return fault(w, site, lane, address + first, RACE);
  }
  return 0;
}

static inline u64* touch_of(const Wave* w, u64 address) {
  return (u64*)(w->memory->touched + (address - w->memory->base) * sizeof(u64));
}

static u64* record_of(const Wave* w, u64 address) {
  if (is_device(w, address)) return touch_of(w, address);
  if (is_lds(w, address)) return w->observer->lds_touched + (address - (u64)w->lds);
  return 0;
}

// A wave that walks through memory without gaps is one access; lanes that repeat the address of the
// lane before them are none.
static i32 touch_lanes(Wave* w, u32 site, const u64* a, u64 size, TouchRule rule) {
  const u64 exec = exec_of(w);
  u64 apart = ~exec;
  for (int i = 0; i < LANES; i++) apart |= a[i] ^ (a[0] + i * size);
  u64* first = record_of(w, a[0]);
  if (!apart && first && record_of(w, a[LANES - 1]) == first + (LANES - 1) * size) {
    if (!touch(w, site, 0, first, LANES * size, a[0], rule)) return 0;
    w->fault_lane = (w->fault_address - a[0]) / size;
    w->fault_address = reported(w, w->fault_address);
    return 1;
  }
  u64 last = 0;
  FOR_ACTIVE(i, exec) {
    u64* record = a[i] == last ? 0 : record_of(w, a[i]);
    last = a[i];
    if (record && touch(w, site, i, record, size, reported(w, a[i]), rule)) return 1;
  }
  return 0;
}

// Alignment and races of an access whose lanes passed the bounds check. The chip runs plain
// accesses at any address (SH_MEM_CONFIG, unaligned mode), so `memory` asks only atomics for the
// alignment of their size; `align` asks plain ones for that of a dword, or of their size if less.
static i32 sanitize_lanes(Wave* w, u32 site, const u64* a, u64 size, int how) {
  Observer* o = w->observer;
  const u64 exec = exec_of(w);
  const int atomic = how == ATOMIC_ACCESS;
  const u64 element = atomic || size < 4 ? size : 4;
  if (o->checks & (atomic ? CHECK_MEMORY : CHECK_ALIGN)) {
    u64 odd = 0;
    for (int i = 0; i < LANES; i++) odd |= a[i] & -(exec >> i & 1);
    if (__builtin_expect(odd & (element - 1), 0)) FOR_ACTIVE(i, exec)
      if (a[i] % element)
        return fault(w, site, i, reported(w, a[i]), atomic ? MISALIGNED : UNALIGNED);
  }
  if (!(o->checks & CHECK_RACE)) return 0;
  return touch_lanes(w, site, a, size, rule_of(w, how));
}

// The marks of bytes that were written, one a byte; null where that is not followed: scratch (and
// so spills), and what lies outside a buffer.
static inline u8* marks_of(const Wave* w, u64 address) {
  if (is_device(w, address)) return log_of(w, address);
  if (is_lds(w, address)) return w->observer->lds_defined + (address - (u64)w->lds);
  return 0;
}

typedef struct { u32 x; } __attribute__((packed)) Marks4;
enum { DEFINED4 = 0x01010101 * DEFINED_BIT };

static inline int all_defined(const u8* marks, u64 size) {
  if (size == 4) return (((const Marks4*)marks)->x & DEFINED4) == DEFINED4;
  u8 all = DEFINED_BIT;
  for (u64 b = 0; b < size; b++) all &= marks[b];
  return all != 0;
}

static void mark(u8* marks, u64 size, int fine) {
  if (size == 4) {
    const u32 rest = ((Marks4*)marks)->x & ~(u32)DEFINED4;
    ((Marks4*)marks)->x = fine ? rest | DEFINED4 : rest;
    return;
  }
  for (u64 b = 0; b < size; b++)
    marks[b] = fine ? marks[b] | DEFINED_BIT : marks[b] & (u8)~DEFINED_BIT;
}

static void define_bytes(Wave* w, u64 address, u64 size, int fine) {
  u8* marks = marks_of(w, address);
  if (marks) mark(marks, size, fine);
}

// Lanes whose bytes were all written.
static u64 defined_lanes(const Wave* w, const u64* a, u64 size) {
  u64 good = 0;
  FOR_ACTIVE(i, exec_of(w)) {
    const u8* marks = marks_of(w, a[i]);
    if (!marks || all_defined(marks, size)) good |= bit(i);
  }
  return good;
}

// Loaded lanes are defined if every byte of them was; `keeps`: the other half of a register stays.
static void note_load(Wave* w, const u64* a, u64 size, i32 dst, int dwords, int keeps) {
  Observer* o = w->observer;
  if (!(o->checks & CHECK_INIT)) return;
  const u64 exec = exec_of(w), each = size / dwords;
  u64 good[4] = {0};
  FOR_ACTIVE(i, exec) {
    const u8* marks = marks_of(w, a[i]);
    for (int j = 0; j < dwords; j++)
      if (!marks || all_defined(marks + j * each, each)) good[j] |= bit(i);
  }
  for (int j = 0; j < dwords; j++) {
    const u64 before = o->defined[dst + j];
    o->defined[dst + j] = (before & ~exec) | (keeps ? before & good[j] : good[j]);
  }
}

// A typed load makes registers of whole elements.
static void note_typed_load(Wave* w, const u64* a, u64 size, i32 dst, int registers) {
  Observer* o = w->observer;
  if (!(o->checks & CHECK_INIT)) return;
  const u64 exec = exec_of(w), good = defined_lanes(w, a, size);
  for (int j = 0; j < registers; j++) o->defined[dst + j] = (o->defined[dst + j] & ~exec) | good;
}

static void note_store(Wave* w, const u64* a, u64 size, i32 src, int dwords) {
  Observer* o = w->observer;
  if (!(o->checks & CHECK_INIT)) return;
  const u64 each = size / dwords;
  FOR_ACTIVE(i, exec_of(w)) {
    u8* marks = marks_of(w, a[i]);
    if (!marks) continue;
    for (int j = 0; j < dwords; j++) mark(marks + j * each, each, o->defined[src + j] >> i & 1);
  }
}

// The old value arrives as it was marked; an exchange marks memory as its data, which the old value
// may replace.
static void note_atomic(Wave* w, const u64* a, i32 src, i32 dst, int swaps, int dwords) {
  Observer* o = w->observer;
  if (!(o->checks & CHECK_INIT)) return;
  const u64 data[2] = {o->defined[src], o->defined[src + dwords - 1]};
  if (dst >= 0) note_load(w, a, 4 * (u64)dwords, dst, dwords, 0);
  if (!swaps) return;
  FOR_ACTIVE(i, exec_of(w))
    for (int j = 0; j < dwords; j++) define_bytes(w, a[i] + 4 * j, 4, data[j] >> i & 1);
}

static void scalar_defined(Wave* w, u64 address, u64 size, u32 dst) {
  Observer* o = w->observer;
  if (!(o->checks & CHECK_INIT)) return;
  for (u64 b = 0; b < size; b += 4)
    if (dst + b / 4 < SCALARS) o->scalar[dst + b / 4] &= all_defined(log_of(w, address + b), 4);
}

static void scalar_noted(Wave* w, u64 address, u64 size, u32 src) {
  Observer* o = w->observer;
  if (!(o->checks & CHECK_INIT)) return;
  for (u64 b = 0; b < size; b += 4) mark(log_of(w, address + b), 4, o->scalar[src + b / 4]);
}
