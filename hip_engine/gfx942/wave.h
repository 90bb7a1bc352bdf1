// The state of a wave and of device memory, as translated code and the runtime see them.
// Offsets come from layout.py by -DOFFSET_* and are asserted here.

#pragma once

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
  MIXED_ROUNDING, BAD_INDEX, BAD_FORMAT, GLOBAL_ATOMIC, UNALIGNED
};
enum { SHARED_APERTURE = 0x00010000, PRIVATE_APERTURE = 0x00020000 };
enum { READ_BIT = 1, WRITTEN_BIT = 2, DEFINED_BIT = 4 };

// Live allocations, sorted by address; `shadow` is the distance to one log byte a byte. Accesses
// to `watched_bytes` from `watched` on are logged; 0 while nobody watches.
typedef struct {
  u64 count;
  const u64 *begin, *end;
  u64 watched, watched_bytes;
  int64_t shadow;
  u64 base, touched;  // start of the arena, and of its race records
} Memory;

typedef struct {
  u64 begin, end, index;
} Range;

struct Observer;

// What memory instructions did, for attestation and evidence; `by_buffer` is (read, written,
// read by 16-byte lane loads) bytes of each live allocation, and the 128-byte lines that loads
// touched, counted load by load.
typedef struct {
  u64 loads, load_bytes, load_lines, load_wide_bytes;
  u64 stores, store_bytes;
  u64 lds_accesses, lds_passes;
  u64 flight_peak;
  u64 (*by_buffer)[4];
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
