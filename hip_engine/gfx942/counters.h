// What an access costs, for evidence: bytes by buffer, distinct 128-byte lines, LDS bank passes.

#pragma once

#include "sanitize.h"

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

static void count_access(Wave* w, u32 site, const u64* a, u64 exec, u64 size, u32 kind) {
  Counters* c = w->counters;
  const u64 bytes = size * __builtin_popcountll(exec);
  const int reads = kind != GLOBAL_STORE, writes = kind != GLOBAL_LOAD;
  if (writes)
    c->stores++, c->store_bytes += bytes;
  else
    c->loads++, c->load_bytes += bytes, c->load_wide_bytes += size == 16 ? bytes : 0;
  Range own = w->recent[site % RECENT];
  u64 different = ~exec, outside = 0;
  for (int i = 0; i < LANES; i++) {
    different |= a[i] ^ (a[0] + i * size);
    outside |= (a[i] - own.begin >= own.end - own.begin) & (exec >> i);
  }
  u64 lines = 0;
  if (!writes)
    lines = different ? distinct_lines(c, a, exec, size)
                      : (a[0] + LANES * size - 1) / 128 - a[0] / 128 + 1;
  const int wide = !writes && size == 16;
  c->load_lines += lines;
  c->by_buffer[own.index][3] += lines;  // of an access to several allocations, to the last one's
  if (!(outside & 1)) {
    c->by_buffer[own.index][0] += reads ? bytes : 0;
    c->by_buffer[own.index][1] += writes ? bytes : 0;
    c->by_buffer[own.index][2] += wide ? bytes : 0;
    return;
  }
  FOR_ACTIVE(i, exec) {
    if (a[i] - own.begin >= own.end - own.begin) find_range(w->memory, a[i], size, &own);
    c->by_buffer[own.index][0] += reads ? size : 0;
    c->by_buffer[own.index][1] += writes ? size : 0;
    c->by_buffer[own.index][2] += wide ? size : 0;
  }
}

// Passes of an LDS access: 32 banks of 4 bytes, as many lanes at a time as take 128 bytes (8 lanes
// of 16 bytes: ROCm's "Understanding AMD GPU LDS and Bank Conflicts"); a pass serves one address a
// bank.
static void count_lds(Wave* w, const u64* a, u64 size) {
  const u64 exec = exec_of(w), words = (size + 3) / 4;
  const int lanes = words > 2 ? 8 : 32 / words;
  u64 apart = ~exec, together = ~exec;
  for (int i = 0; i < LANES; i++) {
    apart |= a[i] ^ (a[0] + size * i);
    together |= a[i] ^ a[0];
  }
  w->counters->lds_accesses++;
  if (!apart || !together) {
    w->counters->lds_passes += LANES / lanes;
    return;
  }
  for (int lane = 0; lane < LANES; lane += lanes) {
    u64 first[32], most = 0;
    u32 uses[32] = {0};
    const u64 group = exec >> lane & ((1ull << lanes) - 1);
    FOR_ACTIVE(i, group << lane)
      for (u64 word = 0; word < words; word++) {
        const u64 dword = (a[i] - (u64)w->lds) / 4 + word;
        const u32 bank = dword % 32;
        if (!uses[bank] || first[bank] != dword) uses[bank]++, first[bank] = dword;
        most = uses[bank] > most ? uses[bank] : most;
      }
    w->counters->lds_passes += most;
  }
}
