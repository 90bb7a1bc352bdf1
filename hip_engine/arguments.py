"""What attention kernels take: mirrors of KvView and AttnArgs."""

import numpy as np

POINTER = np.uint64

# kernels/kv_view.h
KV_VIEW = np.dtype(
    [
        ("k_PKJH", POINTER),
        ("v_PKJH", POINTER),
        ("table_BP", POINTER),
        ("scales_2K", POINTER),
        ("page_stride", np.int64),
        ("head_stride", np.int64),
        ("log2_page", np.int32),
        ("table_stride", np.int32),
    ],
    align=True,
)

# kernels/attention.h: two arguments of their own, which are preloaded, and AttnArgs.
ATTN_ROWS = [("position_T", POINTER), ("sequence_T", POINTER)]
ATTN_STRUCTURE = np.dtype(
    [
        ("q_TNH", POINTER),
        ("k_TKH", POINTER),
        ("v_TKH", POINTER),
        ("cos_sin_SH", POINTER),
        ("k_append_PKJH", POINTER),
        ("v_append_PKJH", POINTER),
        ("kv", KV_VIEW),
        ("max_TNC", POINTER),
        ("sum_TNC", POINTER),
        ("out_TNCH", POINTER),
        ("workgroups", np.int32),
        ("N", np.int32),
        ("K", np.int32),
        ("max_chunks", np.int32),
        ("window", np.int32),
        ("scale", np.float32),
        ("softcap", np.float32),
    ],
    align=True,
)
ATTN_ARGS = np.dtype(
    [*ATTN_ROWS, *((name, ATTN_STRUCTURE[name]) for name in ATTN_STRUCTURE.names)], align=True
)


def attention_arguments(args: np.ndarray) -> tuple[np.generic, ...]:
    """A record of ATTN_ARGS as the kernels' arguments; the last is the structure."""
    structure = np.zeros((), ATTN_STRUCTURE)
    for name in ATTN_STRUCTURE.names:
        structure[name] = args[name]
    return *(args[name][()] for name, _ in ATTN_ROWS), structure[()]


def record(dtype: np.dtype, **fields) -> np.void:
    """A structure with every field named; a missing or unknown one is a KeyError."""
    if fields.keys() != set(dtype.names):
        raise KeyError(f"fields {sorted(fields.keys() ^ set(dtype.names))}")
    value = np.zeros((), dtype)
    for name, field in fields.items():
        value[name] = field
    return value[()]
