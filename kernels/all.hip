// Every kernel, as one translation unit: one code object, the same under clang and hipcc.
#include "argmax.hip"
#include "attn_manual_valu.hip"
#include "elementwise.hip"
#include "gather_rows.hip"
#include "gemv.hip"
#include "kv_append.hip"
#include "rms_norm.hip"
#include "rope.hip"
