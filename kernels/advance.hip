// The step from one decode pass to the next, on the device: the token that argmax chose is the next
// input, one slot further on, and is kept for the host to read later.
#include "device.h"

constexpr int kAdvanceThreads = 64;

// history_TS: the token chosen at each position. Grid: x = groups of 64 rows.
GRETA_KERNEL(kAdvanceThreads)
advance(const int32_t* __restrict__ top1_T, int32_t* __restrict__ token_T,
        int32_t* __restrict__ position_T, int32_t* __restrict__ history_TS, int T, int S) {
  const int row = BlockX() * kAdvanceThreads + ThreadId();
  if (row >= T) return;
  const int position = position_T[row];
  history_TS[static_cast<int64_t>(row) * S + position] = top1_T[row];
  token_T[row] = top1_T[row];
  position_T[row] = position + 1;
}
