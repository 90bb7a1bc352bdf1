// What random programs are made of, for a gfx942 kernel and for a loop on the host alike.
typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned u32;
typedef long i64;
typedef unsigned long u64;
typedef _Float16 f16;
typedef float f32;
typedef double f64;
typedef f16 h2 __attribute__((ext_vector_type(2)));
typedef i16 s2 __attribute__((ext_vector_type(2)));
typedef f32 f2 __attribute__((ext_vector_type(2)));

#ifdef __AMDGCN__
#define FN static inline __attribute__((device))
#define PHASE static __attribute__((device))
#define SHARED __attribute__((shared))
#else
#define FN static inline
#define PHASE static
#endif

#ifdef __AMDGCN__
typedef __bf16 bf16;
#else
// x86 compilers flush subnormals in their bf16, or call what libgcc may lack.
struct bf16 {
  u16 top;
  bf16() = default;
  constexpr bf16(f32 x) : top(0) {
    const u32 b = __builtin_bit_cast(u32, x);
    top = x != x ? 0x7fc0 : (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
  constexpr operator f32() const { return __builtin_bit_cast(f32, (u32)top << 16); }
};
#endif

#define INFINITY_ __builtin_inff()

template <class T>
constexpr u32 kBits = 8 * sizeof(T);
template <class T>
using Unsigned = __make_unsigned(T);

template <class T>
FN T load(const u8* in, u32 i) {
  return ((const T*)in)[i % (4096 / sizeof(T))];
}

// Conversions: out of range and NaN give 0; narrow floats go through f32 on purpose.
template <class T, class From>
FN T integer(From x) {
  if constexpr (From(0.5f) == From(0)) {
    return (T)x;
  } else if constexpr (sizeof(From) == 2) {
    return integer<T>((f32)x);
  } else {
    const From top = (From)(1ull << (kBits<T> - 1)) * (T(-1) < T(0) ? 1 : 2);
    return x > (T(-1) < T(0) ? -top : From(-1)) && x < top ? (T)x : T(0);
  }
}
#define INTEGER(T) \
  template <class From> FN T to_##T(From x) { return integer<T>(x); }
INTEGER(i8) INTEGER(u8) INTEGER(i16) INTEGER(u16) INTEGER(i32) INTEGER(u32) INTEGER(i64) INTEGER(u64)
template <class From> FN f64 to_f64(From x) { return (f64)x; }
FN f64 to_f64(bf16 x) { return (f32)x; }
template <class From> FN f32 to_f32(From x) { return (f32)x; }
template <class From> FN f16 to_f16(From x) { return (f16)(f32)x; }
FN f16 to_f16(f64 x) { return (f16)x; }
template <class From> FN bf16 to_bf16(From x) { return (bf16)(f32)x; }

template <class T>
FN T shl(T x, u32 n) { return (T)((Unsigned<T>)x << (n % kBits<T>)); }
template <class T>
FN T shr(T x, u32 n) { return (T)(x >> (n % kBits<T>)); }
template <class T>
FN T rotate(T x, u32 n) {
  const Unsigned<T> u = x;
  const u32 k = n % kBits<T>;
  return (T)(Unsigned<T>)(u << k | u >> (kBits<T> - k) % kBits<T>);
}
template <class T>
FN bool undivided(T x, T y) { return y == 0 || (T(-1) < T(0) && y == T(-1)); }
// A value the compiler knows nothing of: clang 19 divides a constant of 32 one bits wrongly on
// gfx942, as if it had 24 (clang 22 does not).
template <class T>
FN T opaque(T x) {
#ifdef __AMDGCN__
  if constexpr (sizeof(T) >= 4) asm("" : "+v"(x));
#endif
  return x;
}
template <class T>
FN T quotient(T x, T y) { return undivided(x, y) ? x : (T)(opaque(x) / y); }
template <class T>
FN T remainder(T x, T y) { return undivided(x, y) ? x : (T)(opaque(x) % y); }
template <class T>
FN T min_(T x, T y) { return __builtin_elementwise_min(x, y); }
template <class T>
FN T max_(T x, T y) { return __builtin_elementwise_max(x, y); }
template <class T>
FN T add_sat_(T x, T y) { return __builtin_elementwise_add_sat(x, y); }
template <class T>
FN T sub_sat_(T x, T y) { return __builtin_elementwise_sub_sat(x, y); }
template <class T>
FN T abs_difference_(T x, T y) { return x > y ? (T)(x - y) : (T)(y - x); }
template <class T>
FN T mul_high_(T x, T y) { return (T)(((__int128)x * (__int128)y) >> kBits<T>); }
template <class T>
FN T popcount_(T x) { return (T)__builtin_popcountg((Unsigned<T>)x); }
template <class T>
FN T leading_(T x) { return (T)__builtin_clzg((Unsigned<T>)x, (int)kBits<T>); }
template <class T>
FN T trailing_(T x) { return (T)__builtin_ctzg((Unsigned<T>)x, (int)kBits<T>); }
template <class T>
FN T reverse_(T x) { return __builtin_elementwise_bitreverse(x); }
template <class T>
FN T invert_(T x) { return (T)~x; }
template <class T>
FN T swap_(T x) {
  if constexpr (sizeof(T) == 2) return (T)__builtin_bswap16(x);
  if constexpr (sizeof(T) == 4) return (T)__builtin_bswap32(x);
  if constexpr (sizeof(T) == 8) return (T)__builtin_bswap64(x);
  return x;
}

#define ROUNDING(name) \
  template <class T> FN T name##_(T x) { return __builtin_elementwise_##name(x); }
ROUNDING(floor) ROUNDING(ceil) ROUNDING(trunc) ROUNDING(rint) ROUNDING(sqrt)
template <class T>
FN T fabs_(T x) { return __builtin_elementwise_abs(x); }
FN f32 fma_(f32 x, f32 y, f32 z) { return __builtin_fmaf(x, y, z); }
FN f64 fma_(f64 x, f64 y, f64 z) { return __builtin_fma(x, y, z); }
FN f16 fma_(f16 x, f16 y, f16 z) {
#ifdef __AMDGCN__
  return __builtin_fmaf16(x, y, z);
#else
  return (f16)((__float128)x * (__float128)y + (__float128)z);  // exact before the cast
#endif
}

// Bits of a result; every NaN is the same.
template <class T>
FN u64 bits(T x) {
  if (x != x) return 0x7ff8dead;
  if constexpr (sizeof(T) == 1) return __builtin_bit_cast(u8, x);
  if constexpr (sizeof(T) == 2) return __builtin_bit_cast(u16, x);
  if constexpr (sizeof(T) == 4) return __builtin_bit_cast(u32, x);
  if constexpr (sizeof(T) == 8) return __builtin_bit_cast(u64, x);
}

#ifdef __AMDGCN__

FN void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
// Only lanes that are there: clang 22 makes a readlane of a uniform index, and nothing of a uniform
// value, so what an inactive lane gives is the compiler's choice.
template <u32 kConstant>
FN u32 bpermute(u32 value, u32 index) {
  const u32 lanes = __builtin_popcountl(__builtin_amdgcn_ballot_w64(true));
  return __builtin_amdgcn_ds_bpermute(opaque(index) % lanes * 4, value);
}
template <u32 kConstant>
FN u32 swizzle(u32 value, u32) { return __builtin_amdgcn_ds_swizzle(value, kConstant); }
template <u32 kConstant>
FN u32 readlane(u32 value, u32) { return __builtin_amdgcn_readlane(value, kConstant); }
template <u32 kConstant>
FN u32 ballot(u32 value, u32) {
  const u64 mask = __builtin_amdgcn_ballot_w64(value & 4);
  return (u32)mask ^ (u32)(mask >> 32);
}
#define DPP(name, control)                                                                 \
  template <u32 kConstant> FN u32 name(u32 value, u32 index) {                             \
    return __builtin_amdgcn_update_dpp(index, value, control, 0xf, 0xf, false);            \
  }
DPP(row_shl, 0x100 + kConstant)
DPP(row_shr, 0x110 + kConstant)
DPP(row_ror, 0x120 + kConstant)
DPP(row_mirror, 0x140)
DPP(half_mirror, 0x141)
DPP(bcast15, 0x142)
DPP(bcast31, 0x143)
DPP(newbcast, 0x150 + kConstant)
DPP(quad_perm, kConstant)

#else

// The same on the lanes of a wave: `from` gives the source lane or -1; `n` lanes are active.
template <class From>
static void gather(const u32* value, const u32* otherwise, u32* out, int n, From from) {
  for (int i = 0; i < n; i++) {
    const int source = from(i);
    out[i] = source >= 0 && source < n ? value[source] : otherwise ? otherwise[i] : 0;
  }
}
#define SHUFFLE(name, otherwise, from)                                                        \
  template <u32 kConstant> static void name(const u32* v, const u32* index, u32* out, int n) { \
    gather(v, otherwise, out, n, [&](int i) -> int { return from; });                         \
  }
#define IN_ROW(r) ((r) >= 0 && (r) < 16 ? (i & 48) + (r) : -1)
constexpr int kNone = -1;
SHUFFLE(bpermute, nullptr, (int)(index[i] % (u32)n))
SHUFFLE(swizzle, nullptr,
        kConstant & 0x8000 ? (i & 60) + (int)(kConstant >> 2 * (i & 3) & 3)
                           : (i & 32) + (int)((((i & 31) & kConstant) | (kConstant >> 5 & 31)) ^
                                              (kConstant >> 10 & 31)))
SHUFFLE(row_shl, index, IN_ROW((i & 15) + (int)kConstant))
SHUFFLE(row_shr, index, IN_ROW((i & 15) - (int)kConstant))
SHUFFLE(row_ror, index, IN_ROW((i - (int)kConstant) & 15))
SHUFFLE(row_mirror, index, IN_ROW(15 - (i & 15)))
SHUFFLE(half_mirror, index, (i & 56) + 7 - (i & 7))
SHUFFLE(bcast15, index, i < 16 ? kNone : (i & 48) - 1)
SHUFFLE(bcast31, index, i < 32 ? kNone : 31)
SHUFFLE(newbcast, index, (i & 48) + (int)kConstant)
SHUFFLE(quad_perm, index, (i & 60) + (int)(kConstant >> 2 * (i & 3) & 3))
template <u32 kConstant>
static void readlane(const u32* v, const u32*, u32* out, int n) {
  for (int i = 0; i < n; i++) out[i] = v[kConstant];
}
template <u32 kConstant>
static void ballot(const u32* v, const u32*, u32* out, int n) {
  u64 mask = 0;
  for (int i = 0; i < n; i++) mask |= (u64)((v[i] & 4) != 0) << i;
  for (int i = 0; i < n; i++) out[i] = (u32)mask ^ (u32)(mask >> 32);
}

#endif
