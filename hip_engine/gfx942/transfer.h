// Between LDS and memory without a register, and LDS counters that a whole wave shares.

#pragma once

#include "scalar_memory.h"

enum { AS_DWORD, AS_UBYTE, AS_SBYTE, AS_USHORT, AS_SSHORT };  // the order of transfer.TO_LDS

static const u64 kTransferBytes[] = {4, 1, 1, 2, 2};

static u32 extended(u64 from, u32 how) {
  switch (how) {
    case AS_UBYTE: return PEEK(u8, from);
    case AS_SBYTE: return (u32)(i32)PEEK(i8, from);
    case AS_USHORT: return PEEK(u16, from);
    case AS_SSHORT: return (u32)(i32)PEEK(i16, from);
    default: return PEEK(u32, from);
  }
}

// A loaded element, extended to a dword, goes to LDS at M0 + offset + 4 * lane.
static i32 to_lds(Wave* w, u32 site, const Lanes* from, u32 offset, u32 how) {
  const u64 exec = exec_of(w), size = kTransferBytes[how];
  Lanes to;
  if (lds_lanes(w, site, -1, offset, 4, &to)) return 1;
  if (w->observer) {
    if (sanitize_lanes(w, site, from->a, size, READ_BIT)) return 1;
    if (sanitize_lanes(w, site, to.a, 4, WRITTEN_BIT)) return 1;
    if (w->observer->checks & CHECK_INIT) {
      const u64 fine = defined_lanes(w, from->a, size);
      FOR_ACTIVE(i, exec) define_bytes(w, to.a[i], 4, fine >> i & 1);
    }
  }
  FOR_ACTIVE(i, exec) *(u32*)to.a[i] = extended(from->a[i], how);
  return 0;
}

i32 global_to_lds(Wave* w, u32 site, i32 row, i32 wide, u64 base, u32 offset, u32 how) {
  Lanes from;
  if (global_lanes(w, site, row, wide, base, kTransferBytes[how], GLOBAL_LOAD, &from)) return 1;
  return to_lds(w, site, &from, offset, how);
}

i32 scratch_to_lds(Wave* w, u32 site, i32 row, u32 base, u32 offset, u32 how) {
  Lanes from;
  if (scratch_lanes(w, site, row, base, kTransferBytes[how], &from)) return 1;
  return to_lds(w, site, &from, offset, how);
}

i32 buffer_to_lds(Wave* w, u32 site, i32 row, u32 flags, u32 descriptor, u32 offset, u32 place,
                  u32 how) {
  Lanes from;
  const u64 size = kTransferBytes[how];
  if (buffer_lanes(w, site, row, flags, descriptor, offset, size, GLOBAL_LOAD, &from)) return 1;
  return to_lds(w, site, &from, place, how);
}

// buffer_store_lds_dword: the dword at M0 + offset + 4 * lane of LDS goes to the buffer.
i32 buffer_from_lds(Wave* w, u32 site, i32 row, u32 flags, u32 descriptor, u32 offset, u32 place) {
  const u64 exec = exec_of(w);
  Lanes from, to;
  if (lds_lanes(w, site, -1, place, 4, &from)) return 1;
  if (buffer_lanes(w, site, row, flags, descriptor, offset, 4, GLOBAL_STORE, &to)) return 1;
  if (w->observer) {
    if (sanitize_lanes(w, site, from.a, 4, READ_BIT)) return 1;
    if (sanitize_lanes(w, site, to.a, 4, WRITTEN_BIT)) return 1;
    if (w->observer->checks & CHECK_INIT) {
      const u64 fine = defined_lanes(w, from.a, 4);
      FOR_ACTIVE(i, exec) define_bytes(w, to.a[i], 4, fine >> i & 1);
    }
  }
  FOR_ACTIVE(i, exec) POKE(u32, to.a[i], *(u32*)from.a[i]);
  return 0;
}

// ds_append and ds_consume: a counter moves by the number of active lanes; all get its old value.
// LLVM puts the counter's address in M0.
i32 lds_count_lanes(Wave* w, u32 site, u32 base, i32 dst, i32 consume) {
  const u64 exec = exec_of(w);
  const u64 at = (u32)((w->s[124] & 0xffff) + base);
  Lanes lanes;
  if (!exec) return 0;
  if (at + 4 > w->lds_bytes) return fault(w, site, __builtin_ctzll(exec), at, LDS_ACCESS);
  for (int i = 0; i < LANES; i++) lanes.a[i] = (u64)w->lds + at;
  if (w->observer) {
    if (sanitize_lanes(w, site, lanes.a, 4, ATOMIC_ACCESS)) return 1;
    note_load(w, lanes.a, 4, dst, 1, 0);
  }
  u32* counter = (u32*)(w->lds + (at & ~(u64)3));
  const u32 old = *counter, lanes_active = __builtin_popcountll(exec);
  *counter = consume ? old - lanes_active : old + lanes_active;
  FOR_ACTIVE(i, exec) w->v[dst][i] = old;
  return 0;
}

// ds_condxchg32: each dword is written, without its top bit, where that bit is set.
i32 lds_conditional_exchange(Wave* w, u32 site, i32 row, u32 base, i32 data, i32 dst) {
  const u64 exec = exec_of(w);
  Lanes lanes;
  if (lds_lanes(w, site, row, base, 8, &lanes)) return 1;
  if (exec && w->observer) {
    if (sanitize_lanes(w, site, lanes.a, 8, ATOMIC_ACCESS)) return 1;
    note_load(w, lanes.a, 8, dst, 2, 0);
  }
  FOR_ACTIVE(i, exec) {
    u32* at = (u32*)(lanes.a[i] & ~(u64)7);
    for (int j = 0; j < 2; j++) {
      const u32 x = w->v[data + j][i], old = at[j];
      if (x >> 31) at[j] = x & 0x7fffffff;
      w->v[dst + j][i] = old;
    }
  }
  return 0;
}
