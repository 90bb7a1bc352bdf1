"""The attn_decode_verify record: GRETA's fields, and ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.align import metrics
from experiments.align.invariants import LayerInvariants, Slots
from experiments.align.trace import Trace, tensor_sha256
from experiments.align.verdict import Judgement

# GRETA's name of a tensor -> the site that attention really reads or writes.
TENSORS = {"q": "attn.q_rope", "k": "attn.k_rope", "v": "attn.v"}
OUTPUTS = {"attn_out": "attn.out", "x_out": "resid.out"}


@dataclass(frozen=True)
class Context:
    """What all records of one prompt share: plain values for the record, and the cache's layout."""

    shared: Mapping[str, object]
    dims: Mapping[str, int]
    route_observed: str
    slots: Sequence[Slots]
    layer_stride_bytes: int


def record(
    context: Context,
    ref: Trace,
    got: Trace,
    judgement: Judgement,
    invariants: LayerInvariants | None,
) -> dict:
    """One decode step at one layer; `judgement` is that of attn.out. Hashes cover whole tensors."""
    key = judgement.key
    kernel_path, _, matmul_route = context.route_observed.partition("/")
    fields = {
        "event": "attn_decode_verify",
        "phase": "decode",
        "layer": key.layer,
        "seq_len_used": key.position + 1,
        "pos_id_used": key.position,
        "kernel_path": kernel_path,
        "matmul_route": matmul_route,
        "num_heads": context.dims["N"],
        "num_heads_kv": context.dims["K"],
        "head_dim": context.dims["H"],
        "token_id": key.token_id,
        "route_observed": context.route_observed,
        **context.shared,
    }
    for name, site in (TENSORS | OUTPUTS).items():
        fields |= _tensor_fields(name, _row(got, key.layer, site, key.position))
    reference = _row(ref, key.layer, "attn.out", key.position)
    fields["attn_out_ref_hash"] = tensor_sha256(reference)
    fields["attn_out_mae"] = judgement.total.mae if judgement.total else None
    return fields | _kv_fields(context, key.position, invariants) | judgement_fields(judgement)


def _row(trace: Trace, layer: int, site: str, position: int) -> np.ndarray | None:
    return trace.rows(layer, site)[position] if (layer, site) in trace else None


def _tensor_fields(name: str, row: np.ndarray | None) -> dict:
    if row is None:
        return {f"{name}_hash": None}
    summary = metrics.summary(row)
    return {
        f"{name}_hash": tensor_sha256(row),
        f"{name}_min": summary.min,
        f"{name}_max": summary.max,
        f"{name}_mean": summary.mean,
    }


def _kv_fields(context: Context, position: int, invariants: LayerInvariants | None) -> dict:
    """Offsets are those of the first byte really read and written in this layer's slab."""
    fields = {"kv_pos": position, "kv_layer_stride_bytes": context.layer_stride_bytes}
    for slots in context.slots:
        fields[f"kv_base_ptr_{slots.kind}"] = slots.base_address
        for way in ("read", "write"):
            touched = {} if invariants is None else _touched(invariants, way)
            fields[f"{slots.kind}_{way}_offset_bytes"] = touched.get(slots.kind)
    fields["kv_invariant_ok"] = None if invariants is None else invariants.ok
    fields["kv_error"] = None if invariants is None else "; ".join(invariants.errors)
    return fields


def _touched(invariants: LayerInvariants, way: str) -> dict[str, int]:
    return invariants.read_at if way == "read" else invariants.written_at


def judgement_fields(judgement: Judgement) -> dict:
    """The verdict on one tensor and every number it rests on."""
    fields = {"verdict": str(judgement.status), "verdict_reason": judgement.reason}
    for part in ("total", "local", "propagated"):
        size = getattr(judgement, part)
        fields[f"{part}_mae"] = size.mae if size else None
        fields[f"{part}_max"] = size.max if size else None
        fields[f"{part}_max_at"] = size.at if size else None
    fields["floor_max"] = judgement.floor_max
    fields["local_over_floor"] = judgement.ratio_max
    fields["local_over_floor_at"] = judgement.ratio_at
    fields["closure_ratio"] = judgement.closure_ratio
    fields["ablation_max"] = judgement.ablation.max if judgement.ablation else None
    fields["ablation_over_bound"] = judgement.ablation_ratio
    fields["bits_differ"] = judgement.bits_differ
    fields["propagated_through"] = {
        name: {"mae": size.mae, "max": size.max, "max_at": size.at}
        for name, size in judgement.through.items()
    }
    fields["split_closure_ratio"] = judgement.split_closure_ratio
    fields["smallest_error_detected_here"] = judgement.detects
    return fields
