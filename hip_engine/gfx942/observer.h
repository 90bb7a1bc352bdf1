// The sanitizers: definedness, races and missing waits, observed instruction by instruction from
// the effects recorded at translation (effects.py). The first finding ends the launch as a fault.

#pragma once

#include "wave.h"

enum { CHECK_MEMORY = 1, CHECK_INIT = 2, CHECK_RACE = 4, CHECK_WAITCNT = 8, CHECK_ALIGN = 16 };
enum { VMEM_OP = 1, SMEM_OP = 2, LDS_OP = 4, FLAT_OP = 8, WAIT_OP = 16 };
enum {  // effects.ROLES
  READS, WRITES, ADDRESS, RESULT, FIRST_LANE, SOME_LANE, LANE_WRITE, WHOLE, WHOLE_WRITE,
  SREADS, SWRITES, SADDRESS, SRESULT, CONDITION
};
enum { ROWS = 512, MAX_WAVES = 16, SCALARS = 129, MAX_USES = 24, LDS_LIMIT = 1 << 16 };

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

// Who touched a byte in the current interval between barriers, as one word: the interval (32
// bits), the wave that wrote it + 1 (8 bits; ATOMIC_WRITER: only atomics), a bit for each reader.
enum { ATOMIC_WRITER = 255 };

typedef struct Observer {
  u32 checks;
  u32 epoch;
  const Effect* effects;
  u8* lds_defined;    // one byte a byte of LDS
  u64* lds_touched;
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

static void observe_start(Wave* w, u32 user_sgprs) {
  Observer* o = w->observer;
  for (int r = 0; r < ROWS; r++) o->defined[r] = o->vm_pending[r] = o->lds_pending[r] = 0;
  for (int r = 0; r < SCALARS; r++) o->scalar[r] = (u32)r < user_sgprs, o->scalar_pending[r] = 0;
  o->scalar[126] = o->scalar[127] = 1;
  o->defined[0] = ~(u64)0;
  o->lgkm_issued = o->lgkm_done = o->smem_last = 0;
}
