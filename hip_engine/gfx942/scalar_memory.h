// Scalar loads, stores and atomics: dwords between memory and SGPRs.

#pragma once

#include "atomics.h"

// The dwords of a scalar access in host memory, or null after a fault. The low two bits of the
// address do not count; dropping them is a finding.
static u32* scalar_place(Wave* w, u32 site, u64 address, u64 size, u32 kind, int how) {
  Range* range = &w->recent[site % RECENT];
  Observer* o = w->observer;
  if (address & 3 && o && (o->checks & CHECK_MEMORY)) {
    fault(w, site, 0, address, MISALIGNED);
    return 0;
  }
  address &= ~(u64)3;
  if (range->end - range->begin < size || address - range->begin > range->end - range->begin - size)
    if (!find_range(w->memory, address, size, range)) {
      fault(w, site, 0, address, kind);
      return 0;
    }
  if (__builtin_expect(o && (o->checks & CHECK_RACE), 0))
    if (touch(w, site, 0, touch_of(w, address), size, address, rule_of(w, how))) return 0;
  if (__builtin_expect(w->counters != 0, 0)) {
    if (how != WRITTEN_BIT) w->counters->by_buffer[range->index][0] += size;
    if (how != READ_BIT) w->counters->by_buffer[range->index][1] += size;
  }
  if (__builtin_expect(address - w->memory->watched < w->memory->watched_bytes, 0))
    for (u64 b = 0; b < size; b++)
      *log_of(w, address + b) |= how == ATOMIC_ACCESS ? READ_BIT | WRITTEN_BIT : how;
  return (u32*)address;
}

i32 scalar_load(Wave* w, u32 site, u64 address, u32 dst, u32 dwords) {
  const u32* from = scalar_place(w, site, address, 4 * (u64)dwords, GLOBAL_LOAD, READ_BIT);
  if (!from) return 1;
  for (u32 j = 0; j < dwords; j++) w->s[dst + j] = from[j];
  if (__builtin_expect(w->observer != 0, 0)) scalar_defined(w, (u64)from, 4 * (u64)dwords, dst);
  return 0;
}

i32 scalar_store(Wave* w, u32 site, u64 address, u32 src, u32 dwords) {
  u32* to = scalar_place(w, site, address, 4 * (u64)dwords, GLOBAL_STORE, WRITTEN_BIT);
  if (!to) return 1;
  for (u32 j = 0; j < dwords; j++) to[j] = w->s[src + j];
  if (__builtin_expect(w->observer != 0, 0)) scalar_noted(w, (u64)to, 4 * (u64)dwords, src);
  return 0;
}

// Compare-and-swap keeps the new value first and the comparand after it.
i32 scalar_atomic(Wave* w, u32 site, u64 address, u32 data, u32 operation, u32 dwords,
                  u32 returns) {
  u32* at = scalar_place(w, site, address, 4 * (u64)dwords, GLOBAL_ATOMIC, ATOMIC_ACCESS);
  if (!at) return 1;
  const u32* s = &w->s[data];
  const u64 high = dwords == 2 ? ~(u64)0 : 0;
  const u64 x = s[0] | ((u64)s[1] << 32 & high);
  const u64 compare = operation == CMPSWAP ? s[dwords] | ((u64)s[dwords + 1] << 32 & high) : 0;
  const u64 old = exchange(at, operation, x, compare, dwords);
  if (!returns) return 0;
  w->s[data] = (u32)old;
  if (dwords == 2) w->s[data + 1] = (u32)(old >> 32);
  return 0;
}

// Address of byte `offset` of a buffer, or 0 where `size` bytes there are not all inside.
static u64 in_buffer(const Wave* w, u32 descriptor, u32 offset, u64 size) {
  const u32* d = &w->s[descriptor];
  const u64 base = (d[0] | (u64)d[1] << 32) & 0xffffffffffffu;
  const u32 stride = d[1] >> 16 & 0x3fff;
  const u64 bytes = stride ? (u64)stride * d[2] : d[2];
  return offset + size <= bytes ? base + offset : 0;
}

// Outside their buffer dwords read 0 and are not written, and atomics do nothing and return 0.
i32 scalar_buffer_load(Wave* w, u32 site, u32 descriptor, u32 offset, u32 dst, u32 dwords) {
  u64 at[16];
  for (u32 j = 0; j < dwords; j++) at[j] = in_buffer(w, descriptor, (offset & ~3u) + 4 * j, 4);
  for (u32 j = 0; j < dwords; j++) {
    w->s[dst + j] = 0;
    if (at[j] && scalar_load(w, site, at[j], dst + j, 1)) return 1;
  }
  return 0;
}

i32 scalar_buffer_store(Wave* w, u32 site, u32 descriptor, u32 offset, u32 src, u32 dwords) {
  for (u32 j = 0; j < dwords; j++) {
    const u64 at = in_buffer(w, descriptor, (offset & ~3u) + 4 * j, 4);
    if (at && scalar_store(w, site, at, src + j, 1)) return 1;
  }
  return 0;
}

i32 scalar_buffer_atomic(Wave* w, u32 site, u32 descriptor, u32 offset, u32 data, u32 operation,
                         u32 dwords, u32 returns) {
  const u64 at = in_buffer(w, descriptor, offset & ~3u, 4 * (u64)dwords);
  if (at) return scalar_atomic(w, site, at, data, operation, dwords, returns);
  for (u32 j = 0; returns && j < dwords; j++) w->s[data + j] = 0;
  return 0;
}
