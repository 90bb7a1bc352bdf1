// Matrix-core arithmetic of CDNA3, element by element as the hardware rounds it.
//
// The step below is the model of MMA-Sim (arXiv 2511.10909): the products of a group of k are
// aligned to the largest exponent and truncated, summed exactly, aligned with the accumulator,
// floored to 32 significant bits and rounded to f32. Everything fits in 32- and 64-bit integers.
// A row of the result is computed for 16 columns at a time.

enum { COLS = 16, MAX_K = 32, NO_EXPONENT = -4096, SPECIAL = 1 << 20 };

// Formats of A and B: fraction bits, exponent bits, bias, and whether all-ones exponents are
// infinities and NaN (the FNUZ formats have one NaN, 0x80, instead).
typedef struct {
  int fraction, exponent, bias, ieee;
} Format;
static const Format kF16 = {10, 5, 15, 1}, kBf16 = {7, 8, 127, 1}, kXf32 = {10, 8, 127, 1},
                    kFp8 = {3, 4, 8, 0}, kBf8 = {2, 5, 16, 0};

// significand (signed) and exponent of one number; SPECIAL marks infinity and NaN
static inline void decode(const Format f, u32 bits, i32* m, i32* e) {
  const u32 sign = bits >> (f.fraction + f.exponent) & 1;
  const u32 field = bits >> f.fraction & ((1u << f.exponent) - 1);
  const u32 fraction = bits & ((1u << f.fraction) - 1);
  const u32 ones = (1u << f.exponent) - 1;
  i32 value = (i32)(fraction | (field ? 1u << f.fraction : 0));
  *e = (i32)(field ? field : 1) - f.bias;
  if (f.ieee ? field == ones : (sign && !field && !fraction)) *e = SPECIAL;
  *m = sign ? -value : value;
}

static inline float as_float(u32 bits) {
  Bits32 x = {bits};
  return x.f;
}
static inline u32 as_bits(float value) {
  Bits32 x;
  x.f = value;
  return x.u;
}

// One element with an infinity, a NaN or an overflowing product in it, or 0 if it has none:
// then the arithmetic of the step holds.
static int special_element(const Format fa, const Format fb, const i32* ma, const i32* ea,
                           const i32* mb, const i32* eb, int n, u32 c, float* out) {
  int nan = 0, up = 0, down = 0;
  for (int k = 0; k < n; k++) {
    const int sa = ea[k] == SPECIAL, sb = eb[k] == SPECIAL;
    const int a_nan = sa && (!fa.ieee || (ma[k] & ((1 << fa.fraction) - 1)));
    const int b_nan = sb && (!fb.ieee || (mb[k] & ((1 << fb.fraction) - 1)));
    const int negative = (ma[k] < 0) != (mb[k] < 0);
    int infinite = 0;
    if (a_nan || b_nan) {
      nan = 1;
    } else if (sa || sb) {
      if ((!sa && !ma[k]) || (!sb && !mb[k])) nan = 1;
      infinite = 1;
    } else {
      const i32 product = ma[k] * mb[k];
      const u32 size = product < 0 ? -(u32)product : (u32)product;
      const int two = size >> (fa.fraction + fb.fraction + 1) != 0;
      infinite = size && ea[k] + eb[k] + two >= 128;
    }
    if (infinite) negative ? (down = 1) : (up = 1);
  }
  const float value = as_float(c);
  if (value != value) nan = 1;
  if ((c & 0x7fffffff) == 0x7f800000) c >> 31 ? (down = 1) : (up = 1);
  if (nan || (up && down)) return *out = as_float(0x7fc00000), 1;
  if (up || down) return *out = as_float(down ? 0xff800000 : 0x7f800000), 1;
  return 0;
}

// acc = step(products of one group, acc) for 16 columns. `even_odd` sums even and odd k apart.
static inline __attribute__((always_inline)) void step(
    const Format fa, const Format fb, const i32* ma, const i32* ea, int stride_k, int stride_col,
    const i32 (*mb)[COLS], const i32 (*eb)[COLS], int n, int even_odd, float* acc) {
  const int lift = 24 - fa.fraction - fb.fraction;
  i32 e[MAX_K][COLS], m[MAX_K][COLS], top[2][COLS], sum[2][COLS];
  i32 special[COLS];
  for (int j = 0; j < COLS; j++) {
    top[0][j] = top[1][j] = NO_EXPONENT;
    sum[0][j] = sum[1][j] = special[j] = 0;
  }
  for (int k = 0; k < n; k++) {
    const int half = even_odd ? k & 1 : 0;
    for (int j = 0; j < COLS; j++) {
      m[k][j] = ma[k * stride_k + j * stride_col] * mb[k][j];
      const i32 raw = ea[k * stride_k + j * stride_col] + eb[k][j];
      special[j] |= raw >= 127;
      e[k][j] = m[k][j] ? raw : NO_EXPONENT;
      top[half][j] = e[k][j] > top[half][j] ? e[k][j] : top[half][j];
    }
  }
  for (int k = 0; k < n; k++) {
    const int half = even_odd ? k & 1 : 0;
    for (int j = 0; j < COLS; j++) {
      const i32 sign = m[k][j] >> 31;
      const i32 gap = top[half][j] - e[k][j];
      const u32 size = (u32)((m[k][j] ^ sign) - sign) << lift >> (gap > 31 ? 31 : gap);
      sum[half][j] += ((i32)size ^ sign) - sign;
    }
  }
  i32 any = 0;
  float out[COLS];
  for (int j = 0; j < COLS; j++) {
    const u32 c = as_bits(acc[j]);
    const i32 field = c >> 23 & 0xff;
    const i32 fraction = c & 0x7fffff;
    const i32 plain = field ? fraction | 0x800000 : fraction;
    const int64_t sig_c = (i32)c < 0 ? -plain : plain;
    const i32 e_c = field ? field - 127 : -126;
    special[j] |= field == 255;
    any |= special[j];
    i32 e_dot = top[0][j];
    int64_t s = sum[0][j];
    if (even_odd) {
      e_dot = top[1][j] > e_dot ? top[1][j] : e_dot;
      const i32 down0 = e_dot - top[0][j], down1 = e_dot - top[1][j];
      s = (int64_t)(sum[0][j] >> (down0 > 31 ? 31 : down0)) +
          (sum[1][j] >> (down1 > 31 ? 31 : down1));
    }
    const i32 high = e_dot > e_c ? e_dot : e_c;
    const i32 down_s = high - e_dot, down_c = high - e_c;
    const int64_t aligned = (s << 8) >> (down_s > 63 ? 63 : down_s);
    int64_t carried = (sig_c << 1) >> (down_c > 63 ? 63 : down_c);
    if (even_odd && down_c > 25) carried = 0;
    int64_t total = aligned + (carried << 8);  // in units of 2^(high - 32)
    Bits64 size;
    size.f = (double)(total < 0 ? -total : total);
    i32 top_bit = (i32)(size.u >> 52) - 1023 + high - 32;
    top_bit = top_bit > -126 ? top_bit : -126;
    i32 drop = top_bit - 31 - (high - 32);
    drop = drop < 0 ? 0 : drop > 62 ? 62 : drop;
    total = total >> drop << drop;
    Bits64 unit = {(u64)(high - 32 + 1023) << 52};
    out[j] = (float)((double)total * unit.f);
  }
  if (__builtin_expect(any != 0, 0)) {
    for (int j = 0; j < COLS; j++) {
      if (!special[j]) continue;
      i32 a_m[MAX_K], a_e[MAX_K], b_m[MAX_K], b_e[MAX_K];
      for (int k = 0; k < n; k++) {
        a_m[k] = ma[k * stride_k + j * stride_col];
        a_e[k] = ea[k * stride_k + j * stride_col];
        b_m[k] = mb[k][j];
        b_e[k] = eb[k][j];
      }
      special_element(fa, fb, a_m, a_e, b_m, b_e, n, as_bits(acc[j]), &out[j]);
    }
  }
  for (int j = 0; j < COLS; j++) acc[j] = out[j];
}

// Lane and register of an element of C and D.
static inline int lane_of_c(int size, int blocks, int i, int j, int block) {
  if (size == 4) return 4 * block + j;
  return (size * (i / 4) + j) % LANES;
}
static inline int row_of_c(int size, int blocks, int i, int j, int block) {
  if (size == 4) return i;
  if (size == 16) return 4 * block + i % 4;
  return 16 * block + 4 * (i / 8) + i % 4;
}

// Which lanes of A and B a lane of the instruction reads (CBSZ, ABID, BLGP).
static inline int a_lane(u32 control, int lane) {
  const int cbsz = control & 7, abid = control >> 4 & 15, span = LANES >> cbsz;
  return cbsz ? lane % span + span * abid : lane;
}
static inline int b_lane(u32 control, int lane) {
  const int blgp = control >> 8 & 7;
  if (blgp == 1) return lane % 32;
  if (blgp == 2) return lane % 32 + 32;
  if (blgp == 3) return (lane + 16) % LANES;
  if (blgp >= 4) return lane % 16 + 16 * (blgp - 4);
  return lane;
}

// Element number `part` of a lane's packed operand, `bits` wide.
static inline u32 element(const Wave* w, int row, int lane, int part, int bits) {
  const u32 word = w->v[row + part * bits / 32][lane];
  return bits == 32 ? word : word >> (part * bits % 32) & ((1u << bits) - 1);
}

typedef struct {
  int row;  // first register of C, or negative
  u64 constant;
} Accumulator;

static inline u32 c_word(const Wave* w, Accumulator c, int row, int lane) {
  return c.row < 0 ? (u32)c.constant : w->v[c.row + row][lane];
}

// All shapes of one pair of formats. `size` is M = N, `group` the k of one step.
static inline __attribute__((always_inline)) void mfma_narrow(
    Wave* w, const Format fa, const Format fb, int bits, int drop, int size, int K, int blocks,
    int group, int even_odd, int dst, int a, int b, Accumulator c, u32 control) {
  const int per_lane = K * size * blocks / LANES;
  const int columns = size * blocks;
  i32 ma[MAX_K * 64], ea[MAX_K * 64];                  // [k][block * size + i]
  i32 mb[64 / COLS][MAX_K][COLS], eb[64 / COLS][MAX_K][COLS];  // [column / 16][k][column % 16]
  u32 out[64][LANES];
  for (int k = 0; k < K; k++) {
    const int first = columns * (k / per_lane), shift = k % per_lane * bits % 32 + drop;
    const u32 mask = bits == 32 ? ~0u : (1u << bits) - 1;
    const u32* from_a = w->v[a + k % per_lane * bits / 32];
    const u32* from_b = w->v[b + k % per_lane * bits / 32];
    u32 word_a[64], word_b[64];
    if (control)
      for (int col = 0; col < columns; col++) {
        word_a[col] = from_a[a_lane(control, first + col)];
        word_b[col] = from_b[b_lane(control, first + col)];
      }
    else
      for (int col = 0; col < columns; col++) {
        word_a[col] = from_a[first + col];
        word_b[col] = from_b[first + col];
      }
    for (int col = 0; col < columns; col++) {
      decode(fa, word_a[col] >> shift & mask, &ma[k * columns + col], &ea[k * columns + col]);
      decode(fb, word_b[col] >> shift & mask, &mb[col / COLS][k][col % COLS],
             &eb[col / COLS][k][col % COLS]);
    }
  }
  for (int col = 0; col < columns; col += COLS) {
    const int block = col / size;
    for (int i = 0; i < size; i++) {
      // The 16 columns lie in 16 lanes in a row of one register.
      const int row = row_of_c(size, blocks, i, col % size, block);
      const int lane = lane_of_c(size, blocks, i, col % size, block);
      float acc[COLS];
      i32 wide_m[MAX_K * COLS], wide_e[MAX_K * COLS];
      for (int j = 0; j < COLS; j++) acc[j] = as_float(c_word(w, c, row, lane + j));
      if (size < COLS)  // several blocks in one vector of columns: A differs by column
        for (int k = 0; k < K; k++)
          for (int j = 0; j < COLS; j++) {
            wide_m[k * COLS + j] = ma[k * columns + (col + j) / size * size + i];
            wide_e[k * COLS + j] = ea[k * columns + (col + j) / size * size + i];
          }
      for (int k = 0; k < K; k += group) {
        const int from = k * columns + block * size + i;
        if (size < COLS)
          step(fa, fb, wide_m + k * COLS, wide_e + k * COLS, COLS, 1, mb[col / COLS] + k,
               eb[col / COLS] + k, group, even_odd, acc);
        else
          step(fa, fb, ma + from, ea + from, columns, 0, mb[col / COLS] + k, eb[col / COLS] + k,
               group, even_odd, acc);
      }
      for (int j = 0; j < COLS; j++) out[row][lane + j] = as_bits(acc[j]);
    }
  }
  const int rows = size * size * blocks / LANES;
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < LANES; i++) w->v[dst + r][i] = out[r][i];
}

// f32: a chain of fused multiply-adds in ascending k; i8: exact 32-bit sums.
#define MFMA_CHAIN(name, type, read, combine, write)                                         \
  static void mfma_##name(Wave* w, int size, int K, int blocks, int dst, int a, int b,        \
                          Accumulator c, u32 control) {                                       \
    const int per_lane = K * size * blocks / LANES, columns = size * blocks;                  \
    u32 out[64][LANES];                                                                       \
    for (int col = 0; col < columns; col++)                                                   \
      for (int i = 0; i < size; i++) {                                                        \
        const int in = col / size, j = col % size;                                            \
        const int row = row_of_c(size, blocks, i, j, in), to = lane_of_c(size, blocks, i, j, in); \
        const u32 start = c_word(w, c, row, to);                                              \
        type acc = read(start);                                                               \
        for (int k = 0; k < K; k++) {                                                         \
          const int shift = columns * (k / per_lane), part = k % per_lane;                    \
          const int la = a_lane(control, in * size + i + shift);                              \
          const int lb = b_lane(control, col + shift);                                        \
          acc = combine;                                                                      \
        }                                                                                     \
        out[row][to] = write(acc);                                                            \
      }                                                                                       \
    const int rows = size * size * blocks / LANES;                                            \
    for (int r = 0; r < rows; r++)                                                            \
      for (int i = 0; i < LANES; i++) w->v[dst + r][i] = out[r][i];                           \
  }
#define WORD(row, lane) element(w, row, lane, part, 32)
#define BYTE(row, lane) ((i32)(i8)element(w, row, lane, part, 8))
MFMA_CHAIN(f32, float, as_float, __builtin_fmaf(as_float(WORD(a, la)), as_float(WORD(b, lb)), acc),
           as_bits)
MFMA_CHAIN(i8, u32, (u32), acc + (u32)(BYTE(a, la) * BYTE(b, lb)), (u32))

static inline double read_double(const Wave* w, int row, int lane) {
  Bits64 x = {w->v[row][lane] | (u64)w->v[row + 1][lane] << 32};
  return x.f;
}

// f64: 16x16x4 keeps row i in lanes 16*(i%4) and register pair i/4; 4x4x4 has one pair.
static void mfma_f64(Wave* w, int size, int blocks, int dst, int a, int b, Accumulator c,
                     u32 control) {
  u32 out[8][LANES];
  const u32 negate = control >> 8 & 7;  // for f64 this field negates A, B and C
  for (int block = 0; block < blocks; block++)
    for (int i = 0; i < size; i++)
      for (int j = 0; j < size; j++) {
        const int row = size == 16 ? 2 * (i / 4) : 0;
        const int lane = size == 16 ? 16 * (i % 4) + j : 16 * i + 4 * block + j;
        Bits64 acc = {c.constant};
        if (c.row >= 0) acc.f = read_double(w, c.row + row, lane);
        if (negate & 4) acc.f = -acc.f;
        for (int k = 0; k < 4; k++) {
          const int shift = size * blocks * k;
          double x = read_double(w, a, block * size + i + shift);
          double y = read_double(w, b, block * size + j + shift);
          if (negate & 1) x = -x;
          if (negate & 2) y = -y;
          acc.f = __builtin_fma(x, y, acc.f);
        }
        out[row][lane] = (u32)acc.u;
        out[row + 1][lane] = (u32)(acc.u >> 32);
      }
  for (int r = 0; r < (size == 16 ? 8 : 2); r++)
    for (int i = 0; i < LANES; i++) w->v[dst + r][i] = out[r][i];
}

#define OPERANDS Wave *w, u32 site, i32 dst, i32 a, i32 b, i32 c_row, u64 c_constant, u32 control
#define ACCUMULATOR ((Accumulator){c_row, c_constant})
// Matrix cores ignore MODE: they round to nearest even whatever the wave has set.
#define TO_NEAREST(w, body)                              \
  if (__builtin_expect(w->mode & 15, 0)) round_host(0);  \
  body;                                                  \
  if (__builtin_expect(w->mode & 15, 0)) round_host(rounding_of(w->mode))
#define NARROW(name, fa, fb, bits, drop, size, K, blocks, group, even_odd)                     \
  i32 mfma_##name(OPERANDS) {                                                                  \
    TO_NEAREST(w, mfma_narrow(w, fa, fb, bits, drop, size, K, blocks, group, even_odd, dst,    \
                              a, b, ACCUMULATOR, control));                                    \
    return 0;                                                                                  \
  }
#define SIXTEEN_BIT(type, format)                                    \
  NARROW(f32_32x32x4_2b_##type, format, format, 16, 0, 32, 4, 2, 4, 0)  \
  NARROW(f32_16x16x4_4b_##type, format, format, 16, 0, 16, 4, 4, 4, 0)  \
  NARROW(f32_4x4x4_16b_##type, format, format, 16, 0, 4, 4, 16, 4, 0)   \
  NARROW(f32_32x32x8_##type, format, format, 16, 0, 32, 8, 1, 8, 0)     \
  NARROW(f32_16x16x16_##type, format, format, 16, 0, 16, 16, 1, 8, 0)
SIXTEEN_BIT(f16, kF16)
SIXTEEN_BIT(bf16, kBf16)
NARROW(f32_16x16x8_xf32, kXf32, kXf32, 32, 13, 16, 8, 1, 4, 0)
NARROW(f32_32x32x4_xf32, kXf32, kXf32, 32, 13, 32, 4, 1, 4, 0)
#define EIGHT_BIT(type, fa, fb)                                \
  NARROW(f32_16x16x32_##type, fa, fb, 8, 0, 16, 32, 1, 16, 1)  \
  NARROW(f32_32x32x16_##type, fa, fb, 8, 0, 32, 16, 1, 16, 1)
EIGHT_BIT(fp8_fp8, kFp8, kFp8)
EIGHT_BIT(fp8_bf8, kFp8, kBf8)
EIGHT_BIT(bf8_fp8, kBf8, kFp8)
EIGHT_BIT(bf8_bf8, kBf8, kBf8)
#define CHAIN(name, type, size, K, blocks)                                      \
  i32 mfma_##name(OPERANDS) {                                                   \
    TO_NEAREST(w, mfma_##type(w, size, K, blocks, dst, a, b, ACCUMULATOR, control)); \
    return 0;                                                                   \
  }
CHAIN(f32_32x32x1_2b_f32, f32, 32, 1, 2)
CHAIN(f32_16x16x1_4b_f32, f32, 16, 1, 4)
CHAIN(f32_4x4x1_16b_f32, f32, 4, 1, 16)
CHAIN(f32_32x32x2_f32, f32, 32, 2, 1)
CHAIN(f32_16x16x4_f32, f32, 16, 4, 1)
CHAIN(i32_32x32x4_2b_i8, i8, 32, 4, 2)
CHAIN(i32_16x16x4_4b_i8, i8, 16, 4, 4)
CHAIN(i32_4x4x4_16b_i8, i8, 4, 4, 16)
CHAIN(i32_32x32x16_i8, i8, 32, 16, 1)
CHAIN(i32_16x16x32_i8, i8, 16, 32, 1)
i32 mfma_f64_16x16x4_f64(OPERANDS) {
  TO_NEAREST(w, mfma_f64(w, 16, 1, dst, a, b, ACCUMULATOR, control));
  return 0;
}
i32 mfma_f64_4x4x4_4b_f64(OPERANDS) {
  TO_NEAREST(w, mfma_f64(w, 4, 4, dst, a, b, ACCUMULATOR, control));
  return 0;
}
