"""Faults of the kernels of attention and of the cache."""

from experiments.align.faults.fault import Fault, patch

ATTENTION = (
    Fault(
        "newest_key_dropped",
        "R5",
        patch(
            "attention.h",
            "const int end = position + 1;",
            "const int end = position;",
        ),
        found_at=(0, "attn.out"),
        named="newest_key_missing",
    ),
    Fault(
        "kv_writer_of_another_stride",
        "R16",
        patch(
            "kv_append.hip",
            "position_T[row], H) + h;",
            "position_T[row], H) + h - head * H;",
        ),
        found_at=(0, "kv.k"),
        named="head_stride_short_by_a_slot",
    ),
    Fault(
        "kv_written_a_slot_late",
        patches=patch(
            "kv_append.hip",
            "position_T[row], H) + h;",
            "position_T[row] + 1, H) + h;",
        ),
        found_at=(0, "kv.k"),
        named="slot_of_the_token_before",
    ),
    Fault(
        "keys_a_slot_early",
        patches=patch(
            "attention_valu.h",
            "LoadRow(k, rows, i * kRowsPerLoad + RowOfLane(),",
            "LoadRow(k, rows, i + RowOfLane() ? i * kRowsPerLoad + RowOfLane() - 1 : 0,",
        ),
        found_at=(0, "attn.out"),
        named="keys_read_one_slot_early",
    ),
    Fault(
        "values_a_slot_early",
        patches=patch(
            "attention_valu.h",
            "LoadRow(v, rows, index,",
            "LoadRow(v, rows, index > 0 ? index - 1 : 0,",
        ),
        found_at=(0, "attn.out"),
        named="values_read_one_slot_early",
    ),
    Fault(
        "tail_unmasked",
        patches=patch(
            "attention_valu.h",
            "p[g] = alive ? Exp(score - max) : 0.0f;",
            "p[g] = Exp(score - max);",
        ),
        found_at=(0, "attn.out"),
        named="tail_unmasked",
    ),
    Fault(
        "kv_heads_reversed",
        patches=patch(
            "attention.h",
            "TileRows::At(args.kv, sequence, kv_head, s0,",
            "TileRows::At(args.kv, sequence, args.K - 1 - kv_head, s0,",
        ),
        found_at=(0, "attn.out"),
        named="kv_heads_reversed",
    ),
    Fault(
        "softmax_sum_not_divided_out",
        patches=patch(
            "attn_merge.hip",
            "= out / sum;",
            "= out;",
        ),
        found_at=(0, "attn.out"),
        named="sum_not_divided_out",
    ),
)
