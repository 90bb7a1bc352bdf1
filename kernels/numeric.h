// Elementary functions whose last bit follows from the ISA: fma, rint, ldexp and IEEE division only.
#ifndef GRETA_KERNELS_NUMERIC_H_
#define GRETA_KERNELS_NUMERIC_H_

#include "device.h"

constexpr float kInfinity = __builtin_inff();

// e^x to 1.1 ulp: n = rint(x / ln 2), then 1 + r + r^2 q(r) for r = x - n ln 2 and a ldexp.
//
// ln 2 is split so that n * kLn2High is exact. q is the Chebyshev fit of (e^r - 1 - r) / r^2 on
// [-ln 2 / 2, ln 2 / 2]; its error is 1.1e-8 of e^r. NaN stays NaN; results below 2^-149 are 0, and
// so is that of -infinity.
GRETA_DEVICE float Exp(float x) {
  constexpr float kLog2E = 0x1.715476p+0f;
  constexpr float kLn2High = 0x1.63p-1f;
  constexpr float kLn2Low = -0x1.bd0106p-13f;
  // The clamps are comparisons, not fmin and fmax, which would lose a NaN.
  x = x < -110.0f ? -110.0f : x;
  x = x > 110.0f ? 110.0f : x;
  const float n = __builtin_rintf(x * kLog2E);
  float r = __builtin_fmaf(n, -kLn2High, x);
  r = __builtin_fmaf(n, -kLn2Low, r);
  float q = 0x1.6d110ap-10f;
  q = __builtin_fmaf(q, r, 0x1.120b6ep-7f);
  q = __builtin_fmaf(q, r, 0x1.55551ap-5f);
  q = __builtin_fmaf(q, r, 0x1.5554dcp-3f);
  q = __builtin_fmaf(q, r, 0.5f);
  q = __builtin_fmaf(r * r, q, r);
  return __builtin_ldexpf(1.0f + q, static_cast<int>(n));
}

// x / (1 + e^-x), to 2.9 ulp. e^-|x| cannot overflow, so small results are not lost.
GRETA_DEVICE float Silu(float x) {
  const float e = Exp(-__builtin_fabsf(x));
  return (x < 0.0f ? x * e : x) / (1.0f + e);
}

#endif  // GRETA_KERNELS_NUMERIC_H_
