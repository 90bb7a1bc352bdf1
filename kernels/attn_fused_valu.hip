// Decode attention, route fused/valu: RoPE of q and k, the append and the attention in one kernel.
#include "attention_valu.h"
#include "instance.h"

#define ATTN_FUSED_VALU(kHeads)                                                                    \
  GRETA_KERNEL(64 * kAttnWaves)                                                                    \
  GRETA_SYMBOL(attn_fused_valu, kHeads)                                                            \
  (const int32_t* position_T, const int32_t* sequence_T, AttnArgs args) {                          \
    AttendChunks<GRETA_CACHE, GRETA_HEAD_DIM, kHeads,                                              \
                 ValuTile<GRETA_CACHE, GRETA_HEAD_DIM, kHeads>, true>(position_T,                  \
                                                                        sequence_T, args);         \
  }

ATTN_FUSED_VALU(1)
ATTN_FUSED_VALU(4)
ATTN_FUSED_VALU(8)
