// Decode attention, route fused/mfma: RoPE, append and attention in one kernel, on matrix cores.
#include "attention_mfma.h"
#include "instance.h"

#if GRETA_MATRIX_CACHE
#define ATTN_FUSED_MFMA(kHeads)                                                                    \
  GRETA_KERNEL_OF(64 * kAttnWaves, MfmaWaves(kHeads, GRETA_HEAD_DIM))                              \
  GRETA_SYMBOL(attn_fused_mfma, kHeads)                                                            \
  (const int32_t* position_T, const int32_t* sequence_T, AttnArgs args) {                          \
    AttendChunks<GRETA_CACHE, GRETA_HEAD_DIM, kHeads,                                              \
                 MfmaTile<GRETA_CACHE, GRETA_HEAD_DIM, kHeads>, true>(position_T,                  \
                                                                        sequence_T, args);         \
  }

ATTN_FUSED_MFMA(4)
ATTN_FUSED_MFMA(8)
#if GRETA_HEAD_DIM <= 128
ATTN_FUSED_MFMA(16)
#endif
#endif  // GRETA_MATRIX_CACHE
