// The sanitizers: definedness, races and missing waits, observed instruction by instruction from
// the effects recorded at translation (effects.py). The first finding ends the launch as a fault.

#pragma once

#include "wave.h"

enum { CHECK_MEMORY = 1, CHECK_INIT = 2, CHECK_RACE = 4, CHECK_WAITCNT = 8 };
enum { VMEM_OP = 1, SMEM_OP = 2, LDS_OP = 4, FLAT_OP = 8, WAIT_OP = 16 };
enum {  // effects.ROLES
  READS, WRITES, ADDRESS, RESULT, FIRST_LANE, SOME_LANE, LANE_WRITE, WHOLE, WHOLE_WRITE,
  SREADS, SWRITES, SADDRESS, SRESULT, CONDITION
};
enum { ROWS = 512, SCALARS = 129, MAX_USES = 24, LDS_LIMIT = 1 << 16 };

typedef struct {
  u16 flags;
  i8 vmcnt, lgkmcnt;
  u16 uses, pad;
  struct {
    u16 first;
    u8 count, role;
  } use[MAX_USES];
} Effect;
_Static_assert(sizeof(Effect) == OFFSET_EFFECT_BYTES, "effects.RECORD");

// Who touched a byte in the current interval between barriers.
typedef struct {
  u32 epoch;
  u8 writer;  // wave + 1; 0 nobody, ATOMIC only atomics
  u8 pad;
  u16 readers;  // one bit a wave
} Touch;
enum { ATOMIC_WRITER = 255 };

typedef struct Observer {
  u32 checks;
  u32 epoch;
  const Effect* effects;
  u8* lds_defined;    // one byte a byte of LDS
  Touch* lds_touched;
  u64 defined[ROWS];  // lanes of each register that hold a written value
  u8 scalar[SCALARS];
  u32 vm_pending[ROWS], lds_pending[ROWS], scalar_pending[SCALARS];
  u32 lgkm_issued, lgkm_done, smem_last;
} Observer;

static i32 undefined(Wave* w, u32 site, u64 lanes, u32 number) {
  return fault(w, site, lanes ? (u32)__builtin_ctzll(lanes) : 0, number, UNDEFINED);
}

static inline int lane_pending(const Wave* w, const Observer* o, u32 row) {
  return o->vm_pending[row] > w->vm_done || o->lds_pending[row] > o->lgkm_done;
}

static i32 check_waits(Wave* w, Observer* o, u32 site, const Effect* e) {
  for (u32 u = 0; u < e->uses; u++) {
    const u32 first = e->use[u].first, last = first + e->use[u].count, role = e->use[u].role;
    for (u32 r = first; r < last; r++) {
      if (role >= SREADS) {
        if (r < SCALARS && o->scalar_pending[r] > o->lgkm_done)
          return fault(w, site, 0, r | 0x10000, WAITCNT);
      } else if (lane_pending(w, o, r)) {
        // An LDS or global load may overwrite the target of an older load of its own kind: in order.
        if (role == RESULT && (e->flags & VMEM_OP) && o->lds_pending[r] <= o->lgkm_done) continue;
        if (role == RESULT && (e->flags & LDS_OP) && o->vm_pending[r] <= w->vm_done) continue;
        return fault(w, site, 0, r, WAITCNT);
      }
    }
  }
  return 0;
}

static void issue(Wave* w, Observer* o, const Effect* e) {
  if (e->flags & WAIT_OP) {
    if (e->lgkmcnt == 0) {
      o->lgkm_done = o->lgkm_issued;
    } else if (e->lgkmcnt > 0 && o->smem_last <= o->lgkm_done &&
               o->lgkm_issued > (u32)e->lgkmcnt + o->lgkm_done) {
      o->lgkm_done = o->lgkm_issued - e->lgkmcnt;  // LDS returns in order; scalar loads do not
    }
    return;
  }
  if (e->flags & (LDS_OP | SMEM_OP)) o->lgkm_issued++;
  if (e->flags & SMEM_OP) o->smem_last = o->lgkm_issued;
  for (u32 u = 0; u < e->uses; u++) {
    const u32 first = e->use[u].first, last = first + e->use[u].count, role = e->use[u].role;
    for (u32 r = first; r < last; r++) {
      if (role == SRESULT && r < SCALARS) o->scalar_pending[r] = o->lgkm_issued;
      if (role != RESULT && !(role == WRITES && e->flags)) continue;
      if (e->flags & VMEM_OP) o->vm_pending[r] = w->vm_issued + 1;
      if (e->flags & LDS_OP) o->lds_pending[r] = o->lgkm_issued;
    }
  }
}

// A value is as defined, lane by lane, as everything it was made from.
static i32 check_defined(Wave* w, Observer* o, u32 site, const Effect* e) {
  const u64 exec = exec_of(w);
  u64 known = ~(u64)0;
  for (u32 u = 0; u < e->uses; u++) {
    const u32 first = e->use[u].first, last = first + e->use[u].count, role = e->use[u].role;
    for (u32 r = first; r < last; r++) {
      const u64 row = role < SREADS ? o->defined[r] : 0;
      const int scalar = role >= SREADS && r < SCALARS ? o->scalar[r] : 1;
      switch (role) {
        case READS: known &= (exec & ~row) ? row | ~exec : ~(u64)0; break;
        case ADDRESS:
          if (exec & ~row) return undefined(w, site, exec & ~row, r);
          break;
        case FIRST_LANE: known = exec && !(row & exec & -exec) ? 0 : known; break;
        case SOME_LANE: known = row ? known : 0; break;
        case WHOLE: known = ~row ? 0 : known; break;
        case SREADS: known = scalar ? known : 0; break;
        case SADDRESS:
        case CONDITION:
          if (!scalar) return undefined(w, site, 0, r | 0x10000);
          break;
        default: break;
      }
    }
  }
  for (u32 u = 0; u < e->uses; u++) {
    const u32 first = e->use[u].first, last = first + e->use[u].count, role = e->use[u].role;
    for (u32 r = first; r < last; r++) {
      if (role == WRITES) o->defined[r] = (o->defined[r] & ~exec) | (exec & known);
      if (role == LANE_WRITE) o->defined[r] = known ? ~(u64)0 : o->defined[r];
      if (role == WHOLE_WRITE) o->defined[r] = known == ~(u64)0 ? known : 0;
      if ((role == SWRITES || role == SRESULT) && r < SCALARS) {
        const int fine = (known & exec) == exec && known;
        if (!fine && (r == 126 || r == 127)) return undefined(w, site, exec & ~known, r | 0x10000);
        o->scalar[r] = fine;
      }
    }
  }
  return 0;
}

// Called before each instruction of instrumented code.
i32 observe(Wave* w, u32 site) {
  Observer* o = w->observer;
  const Effect* e = &o->effects[site];
  if (o->checks & CHECK_WAITCNT) {
    if (check_waits(w, o, site, e)) return 1;
    issue(w, o, e);
  }
  if (o->checks & CHECK_INIT) return check_defined(w, o, site, e);
  return 0;
}

// ---- Memory, as the loads and stores of the runtime see it ------------------------------------

static inline u8* log_of(const Wave* w, u64 address) {
  return (u8*)(address + w->memory->shadow);
}

static i32 touch(Wave* w, u32 site, u32 lane, Touch* t, u64 size, u64 address, int how) {
  const u32 epoch = w->observer->epoch;
  const u8 me = (u8)(w->wave_index + 1);
  const u16 bit_of_me = (u16)(1 << (w->wave_index & 15));
  for (u64 b = 0; b < size; b++) {
    Touch* at = &t[b];
    if (at->epoch != epoch) *at = (Touch){epoch, 0, 0, 0};
    const int others_read = (at->readers & ~bit_of_me) != 0;
    const int other_wrote = at->writer && at->writer != me;
    if (how == READ_BIT) {
      if (other_wrote) return fault(w, site, lane, address + b, RACE);
      at->readers |= bit_of_me;
    } else if (how == WRITTEN_BIT) {
      if (other_wrote || others_read) return fault(w, site, lane, address + b, RACE);
      at->writer = me;
    } else {  // atomic
      if ((other_wrote && at->writer != ATOMIC_WRITER) || others_read)
        return fault(w, site, lane, address + b, RACE);
      at->writer = ATOMIC_WRITER;
    }
  }
  return 0;
}

enum { ATOMIC_ACCESS = 3 };

static int is_lds(const Wave* w, u64 address) {
  return address - (u64)w->lds < w->lds_bytes;
}
// Buffer accesses outside their buffer go to a sink of the runtime, not to device memory.
static int is_device(const Wave* w, u64 address) {
  return address - w->memory->base < OFFSET_ARENA_BYTES;
}
static int is_scratch(const Wave* w, u64 address) {
  return address - (u64)w->scratch < w->scratch_stride * LANES;
}

// Alignment and races of an access whose lanes passed the bounds check. Plain vector accesses may
// be unaligned on this chip (SH_MEM_CONFIG); atomics may not, and scalar loads drop the low bits.
static i32 sanitize_lanes(Wave* w, u32 site, const u64* a, u64 size, int how) {
  Observer* o = w->observer;
  const u64 exec = exec_of(w);
  FOR_ACTIVE(i, exec) {
    if ((o->checks & CHECK_MEMORY) && how == ATOMIC_ACCESS && a[i] % size)
      return fault(w, site, i, is_lds(w, a[i]) ? a[i] - (u64)w->lds : a[i], MISALIGNED);
    if (!(o->checks & CHECK_RACE) || is_scratch(w, a[i])) continue;
    if (!is_lds(w, a[i]) && !is_device(w, a[i])) continue;
    if (is_lds(w, a[i])) {
      const u64 at = a[i] - (u64)w->lds;
      if (touch(w, site, i, o->lds_touched + at, size, at, how)) return 1;
    } else {
      Touch* t = (Touch*)(w->memory->touched + (a[i] - w->memory->base) * sizeof(Touch));
      if (touch(w, site, i, t, size, a[i], how)) return 1;
    }
  }
  return 0;
}

static u8* defined_bytes(const Wave* w, u64 address, u8* bit_of) {
  if (is_lds(w, address)) return *bit_of = 1, w->observer->lds_defined + (address - (u64)w->lds);
  return *bit_of = DEFINED_BIT, log_of(w, address);
}

// Loaded lanes are defined if every byte of them was.
static void note_load(Wave* w, const u64* a, u64 size, i32 dst, int dwords, int keeps) {
  Observer* o = w->observer;
  if (!(o->checks & CHECK_INIT)) return;
  const u64 exec = exec_of(w);
  const u64 each = size / dwords ? size / dwords : size;
  for (int j = 0; j < dwords; j++) {
    u64 good = 0;
    FOR_ACTIVE(i, exec) {
      u8 mark = 0;
      int fine = 1;
      if (is_scratch(w, a[i]) || (!is_lds(w, a[i]) && !is_device(w, a[i]))) {
        good |= bit(i);  // spills, whose definedness is not followed, and zeros
        continue;
      }
      const u8* d = defined_bytes(w, a[i] + j * each, &mark);
      for (u64 b = 0; b < each; b++) fine &= (d[b] & mark) != 0;
      if (fine) good |= bit(i);
    }
    o->defined[dst + j] = (o->defined[dst + j] & ~exec) | (keeps ? exec : good);
    if (keeps) o->defined[dst + j] &= good | ~exec;
  }
}

static void note_store(Wave* w, const u64* a, u64 size, i32 src, int dwords) {
  Observer* o = w->observer;
  if (!(o->checks & CHECK_INIT)) return;
  const u64 exec = exec_of(w), each = size / dwords ? size / dwords : size;
  FOR_ACTIVE(i, exec) {
    if (is_scratch(w, a[i]) || (!is_lds(w, a[i]) && !is_device(w, a[i]))) continue;
    for (int j = 0; j < dwords; j++) {
      u8 mark = 0;
      u8* d = defined_bytes(w, a[i] + j * each, &mark);
      const int fine = o->defined[src + j] >> i & 1;
      for (u64 b = 0; b < each; b++) d[b] = fine ? d[b] | mark : d[b] & (u8)~mark;
    }
  }
}

static i32 scalar_defined(Wave* w, u64 address, u64 size, u32 dst) {
  Observer* o = w->observer;
  if (!(o->checks & CHECK_INIT)) return 0;
  for (u64 b = 0; b < size; b++)
    if (dst + b / 4 < SCALARS) o->scalar[dst + b / 4] &= (*log_of(w, address + b) & DEFINED_BIT) != 0;
  return 0;
}

static void observe_start(Wave* w, u32 user_sgprs) {
  Observer* o = w->observer;
  for (int r = 0; r < ROWS; r++) o->defined[r] = o->vm_pending[r] = o->lds_pending[r] = 0;
  for (int r = 0; r < SCALARS; r++) o->scalar[r] = (u32)r < user_sgprs, o->scalar_pending[r] = 0;
  o->scalar[126] = o->scalar[127] = 1;
  o->defined[0] = ~(u64)0;
  o->lgkm_issued = o->lgkm_done = o->smem_last = 0;
}
