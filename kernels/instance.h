// The head size and cache type that a code object is built for, and the symbols that say so.
//
// The compiler is given -DGRETA_HEAD_DIM=64 and -DGRETA_KV_f16; kernels of attention and of the
// append exist once a code object, named attn_manual_valu_f16_h64_g4 and the like.
#ifndef GRETA_KERNELS_INSTANCE_H_
#define GRETA_KERNELS_INSTANCE_H_

#include "kv_view.h"

#ifndef GRETA_HEAD_DIM
#define GRETA_HEAD_DIM 64
#endif
#if defined(GRETA_KV_f32)
#define GRETA_CACHE float
#define GRETA_CACHE_NAME f32
#define GRETA_MATRIX_CACHE 0
#elif defined(GRETA_KV_bf16)
#define GRETA_CACHE bfloat_t
#define GRETA_CACHE_NAME bf16
#define GRETA_MATRIX_CACHE 1
#elif defined(GRETA_KV_fp8)
#define GRETA_CACHE fp8_t
#define GRETA_CACHE_NAME fp8
#define GRETA_MATRIX_CACHE 1
#else
#define GRETA_CACHE half_t
#define GRETA_CACHE_NAME f16
#define GRETA_MATRIX_CACHE 1
#endif

#define GRETA_JOIN(a, cache, dim, heads) a##_##cache##_h##dim##_g##heads
#define GRETA_EXPAND(a, cache, dim, heads) GRETA_JOIN(a, cache, dim, heads)
#define GRETA_SYMBOL(a, heads) GRETA_EXPAND(a, GRETA_CACHE_NAME, GRETA_HEAD_DIM, heads)

#define GRETA_JOIN2(a, cache) a##_##cache
#define GRETA_EXPAND2(a, cache) GRETA_JOIN2(a, cache)
#define GRETA_CACHE_SYMBOL(a) GRETA_EXPAND2(a, GRETA_CACHE_NAME)

#endif  // GRETA_KERNELS_INSTANCE_H_
