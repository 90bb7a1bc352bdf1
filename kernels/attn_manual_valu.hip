// Decode attention, route manual/valu: q and the cache are ready, products on the vector ALUs.
#include "attention_valu.h"
#include "instance.h"

#define ATTN_MANUAL_VALU(kHeads)                                                                   \
  GRETA_KERNEL(64 * kAttnWaves)                                                                    \
  GRETA_SYMBOL(attn_manual_valu, kHeads)                                                           \
  (const int32_t* position_T, const int32_t* sequence_T, AttnArgs args) {                          \
    AttendChunks<GRETA_CACHE, GRETA_HEAD_DIM, kHeads,                                              \
                 ValuTile<GRETA_CACHE, GRETA_HEAD_DIM, kHeads>, false>(position_T,                 \
                                                                        sequence_T, args);         \
  }

ATTN_MANUAL_VALU(1)
ATTN_MANUAL_VALU(4)
ATTN_MANUAL_VALU(8)
