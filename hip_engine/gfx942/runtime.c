// What translated code calls: memory accesses of a wave, lane functions, and the loop over
// workgroups. Freestanding C for the host; every function that can fault returns nonzero then.
// The state's layout is given by -DOFFSET_* (layout.py) and asserted here.

#include "typed.h"

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

// 2/pi to 1201 bits, the first worth a half.
static const u64 kTwoOverPi[] = {
  0xa2f9836e4e441529, 0xfc2757d1f534ddc0, 0xdb6295993c439041, 0xfe5163abdebbc561,
  0xb7246e3a424dd2e0, 0x06492eea09d1921c, 0xfe1deb1cb129a73e, 0xe88235f52ebb4484,
  0xe99c7026b45f7e41, 0x3991d639835339f4, 0x9c845f8bbdf9283b, 0x1ff897ffde05980f,
  0xef2f118b5a0a6d1f, 0x6d367ecf27cb09b7, 0x4f463f669e5fea2d, 0x7527bac7ebe5f17b,
  0x3d0739f78a5292ea, 0x6bfb5fb11f8d5d08, 0x56033046fc7b0000,
};
enum { TWO_OVER_PI_WORDS = sizeof(kTwoOverPi) / 8 };

static double two_to(i32 n) {  // normal powers only
  union { u64 u; double f; } x = {(u64)(n + 1023) << 52};
  return x.f;
}

// In: first bit and, from bit 16 on, whether the result is scaled by 2^128. Out: the 53 bits there.
void lanes_two_over_pi(void* lanes) {
  u32 in[LANES];
  double* out = lanes;
  for (int i = 0; i < LANES; i++) in[i] = ((const u32*)lanes)[i];
  for (int i = 0; i < LANES; i++) {
    const i32 first = in[i] & 0xffff, word = first / 64, shift = first % 64;
    const u64 high = word < TWO_OVER_PI_WORDS ? kTwoOverPi[word] : 0;
    const u64 low = word + 1 < TWO_OVER_PI_WORDS ? kTwoOverPi[word + 1] : 0;
    const u64 bits = (shift ? high << shift | low >> (64 - shift) : high) >> 11;
    i32 exponent = -53 - first + (in[i] >> 16 ? 128 : 0);
    double value = (double)bits;
    for (; exponent < -1000; exponent += 1000) value *= two_to(-1000);
    out[i] = value * two_to(exponent);
  }
}

// ---- Registers by number -------------------------------------------------------------------

// A register named by an index: it must be there, unless no lane would use it, and is written, if
// `writes`, from now on.
i32 indexed_register(Wave* w, u32 site, u32 number, u32 limit, u32 scalar, u32 writes) {
  if (number >= limit) return scalar || exec_of(w) ? fault(w, site, 0, number, BAD_INDEX) : 0;
  Observer* o = w->observer;
  if (!writes || !o) return 0;
  if (scalar) o->scalar[number] = 1;
  else o->defined[number] |= exec_of(w);
  return 0;
}

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
  u64* lds_touched;
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
