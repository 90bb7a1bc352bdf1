"""Faults as data: a change of one source, where it would really live, and where it must be found.

Adding one is five lines here; the run that injects it must fail, place it, and name it if it says
so. A decoy is the same with nothing to find: the run must pass.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from experiments.align.errors import UnknownFault

KERNEL, HOST, OPTIONS = "kernel", "host", "options"
NOWHERE = (-1, "")


@dataclass(frozen=True)
class Fault:
    """A source patch: `old`, which occurs exactly once in `file`, becomes `new`.

    reference: its id in GRETA's record, if it happened there. where: KERNEL for a file of kernels/,
    HOST for a module of the engine, OPTIONS for none: `options` of the engine alone. found_at:
    (layer, site) of the first divergence; NOWHERE for a decoy, or if the run is stopped with an
    error that contains `stops`. named: the hypothesis that says what it is; empty if none does.
    """

    name: str
    reference: str
    where: str
    file: str = ""
    old: str = ""
    new: str = ""
    found_at: tuple[int, str] = NOWHERE
    stops: str = ""
    named: str = ""
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_decoy(self) -> bool:
        return self.found_at == NOWHERE and not self.stops


CORPUS = (
    Fault(
        *("kv_base_of_layer_0", "R7", HOST, "hip_engine.engine"),
        old="return self._cache.layer_offset_bytes(layer)",
        new="return self._cache.layer_offset_bytes(0)",
        found_at=(1, "attn.out"),
        named="kv_base_of_layer_0",
    ),
    Fault(
        *("kv_base_of_previous_layer", "", HOST, "hip_engine.engine"),
        old="return self._cache.layer_offset_bytes(layer)",
        new="return self._cache.layer_offset_bytes(max(layer - 1, 0))",
        found_at=(1, "attn.out"),
        named="kv_base_of_previous_layer",
    ),
    Fault(
        *("newest_key_dropped", "R5", KERNEL, "attention.h"),
        old="const int end = position + 1;",
        new="const int end = position;",
        found_at=(0, "attn.out"),
        named="newest_key_missing",
    ),
    Fault(
        *("kv_append_for_query_heads", "R6", HOST, "hip_engine.forward"),
        old='at["attn.v"], rows, view, shape[1:], T)',
        new='at["attn.v"], rows, view, (shape[0], shape[2]), T)',
        stops="kv_append",
    ),
    Fault(
        *("kv_writer_of_another_stride", "R16", KERNEL, "kv_append.hip"),
        old="position_T[row], H) + h;",
        new="position_T[row], H) + h - head * H;",
        found_at=(0, "kv.k"),
    ),
    Fault(
        *("kv_written_a_slot_late", "", KERNEL, "kv_append.hip"),
        old="position_T[row], H) + h;",
        new="position_T[row] + 1, H) + h;",
        found_at=(0, "kv.k"),
        named="slot_of_the_token_before",
    ),
    Fault(
        *("k_cached_before_rope", "", HOST, "hip_engine.forward"),
        old='kv_append(cache, turned[1], at["attn.v"],',
        new='kv_append(cache, at["attn.k"], at["attn.v"],',
        found_at=(0, "kv.k"),
        named="cached_before_the_rotation",
    ),
    Fault(
        *("k_and_v_cached_for_each_other", "", HOST, "hip_engine.forward"),
        old='kv_append(cache, turned[1], at["attn.v"],',
        new='kv_append(cache, at["attn.v"], turned[1],',
        found_at=(0, "kv.k"),
        named="cached_for_each_other",
    ),
    Fault(
        *("q4_k_scales_of_late_blocks", "L2", KERNEL, "weight_formats.h"),
        old="(low4 & 0x0f0f0f0f) | ((header[1] >> 2) & 0x30303030)",
        new="(low4 & 0x0f0f0f0f) | ((header[1] >> 4) & 0x0c0c0c0c)",
        stops="the device decodes",
    ),
    Fault(
        *("q6_k_planes_swapped", "L3", KERNEL, "weight_formats.h"),
        old="const uint32_t bits = tops[i] >> (2 * p);",
        new="const uint32_t bits = tops[i] >> (2 - 2 * p);",
        stops="the device decodes",
    ),
    Fault(
        *("k_and_v_projected_for_each_other", "", HOST, "hip_engine.forward"),
        old='f"attn.{name}" for name in "qkv"}',
        new="f\"attn.{dict(q='q', k='v', v='k')[name]}\" for name in \"qkv\"}",
        found_at=(0, "attn.k"),
    ),
    Fault(
        *("attention_weights_of_layer_0", "", HOST, "hip_engine.forward"),
        old='qkv = {f"{block}.attn_{name}.weight"',
        new='qkv = {f"blk.0.attn_{name}.weight"',
        found_at=(1, "attn.q"),
    ),
    Fault(
        *("rope_in_halves", "L6", KERNEL, "rope.hip"),
        old="""  const float a = x_H[2 * i], b = x_H[2 * i + 1];
  y_H[2 * i] = __builtin_fmaf(a, cosine, -(b * sine));
  y_H[2 * i + 1] =""",
        new="""  const float a = x_H[i], b = x_H[i + half];
  y_H[i] = __builtin_fmaf(a, cosine, -(b * sine));
  y_H[i + half] =""",
        found_at=(0, "attn.q_rope"),
        named="rotated_in_halves",
    ),
    Fault(
        *("rope_position_off_by_one", "G2", KERNEL, "rope.hip"),
        old="static_cast<int64_t>(position_T[token]) * H",
        new="static_cast<int64_t>(position_T[token] + 1) * H",
        found_at=(0, "attn.q_rope"),
        named="position_plus_one",
    ),
    Fault(
        *("rope_skipped", "", KERNEL, "rope.hip"),
        old="static_cast<int64_t>(position_T[token]) * H",
        new="static_cast<int64_t>(0 * position_T[token]) * H",
        found_at=(0, "attn.q_rope"),
        named="not_rotated",
    ),
    Fault(
        *("rope_base_doubled", "", HOST, "hip_engine.memory_plan"),
        old="np.float64(config.rope_base)",
        new="(2 * np.float64(config.rope_base))",
        found_at=(0, "attn.q_rope"),
    ),
    Fault(
        *("attention_of_unrotated_queries", "", HOST, "hip_engine.forward"),
        old='at["attn.q" if fused else "attn.q_rope"]',
        new='at["attn.q"]',
        found_at=(0, "attn.out"),
        named="queries_not_rotated",
    ),
    Fault(
        *("softmax_scale_missing", "", HOST, "hip_engine.forward"),
        old='args["scale"] = config.H**-0.5',
        new='args["scale"] = 1.0',
        found_at=(0, "attn.out"),
        named="scale_missing",
    ),
    Fault(
        *("softmax_scale_1_over_h", "", HOST, "hip_engine.forward"),
        old='args["scale"] = config.H**-0.5',
        new='args["scale"] = config.H**-1.0',
        found_at=(0, "attn.out"),
        named="scale_is_1_over_h",
    ),
    Fault(
        *("keys_a_slot_early", "", KERNEL, "attention_valu.h"),
        old="const int slot = (first + i) * kRowsPerLoad + RowOfLane();",
        new="int slot = (first + i) * kRowsPerLoad + RowOfLane(); slot -= slot > 0;",
        found_at=(0, "attn.out"),
        named="keys_read_one_slot_early",
    ),
    Fault(
        *("values_a_slot_early", "", KERNEL, "attention_valu.h"),
        old="LoadRow(v, rows, index,",
        new="LoadRow(v, rows, index > 0 ? index - 1 : 0,",
        found_at=(0, "attn.out"),
        named="values_read_one_slot_early",
    ),
    Fault(
        *("tail_unmasked", "", KERNEL, "attention_valu.h"),
        old="const float p = alive ? Exp(score - max) : 0.0f;",
        new="const float p = Exp(score - max);",
        found_at=(0, "attn.out"),
    ),
    Fault(
        *("kv_heads_reversed", "", KERNEL, "attention.h"),
        old="TileRows::At(args.kv, sequence, kv_head, s0,",
        new="TileRows::At(args.kv, sequence, args.K - 1 - kv_head, s0,",
        found_at=(0, "attn.out"),
    ),
    Fault(
        *("softmax_sum_not_divided_out", "", KERNEL, "attn_merge.hip"),
        old="= out / sum;",
        new="= out;",
        found_at=(0, "attn.out"),
    ),
    Fault(
        *("residual_doubled", "", KERNEL, "elementwise.hip"),
        old="*reinterpret_cast<float_x4*>(y_TD + i) = a + b;",
        new="*reinterpret_cast<float_x4*>(y_TD + i) = a + a + b;",
        found_at=(0, "resid.mid"),
        named="residual_doubled",
    ),
    Fault(
        *("residual_missing", "", KERNEL, "elementwise.hip"),
        old="*reinterpret_cast<float_x4*>(y_TD + i) = a + b;",
        new="*reinterpret_cast<float_x4*>(y_TD + i) = b + 0.0f * a;",
        found_at=(0, "resid.mid"),
        named="residual_missing",
    ),
    Fault(
        *("norm_epsilon_of_another_model", "", HOST, "hip_engine.forward"),
        old="config.D, config.norm_eps, T)",
        new="config.D, 100 * config.norm_eps, T)",
        found_at=(0, "attn.norm"),
    ),
    Fault(
        *("norm_weight_missing", "", KERNEL, "rms_norm.hip"),
        old="y_D[i] = x_D[i] * scale * weight_D[i];",
        new="y_D[i] = x_D[i] * scale + 0.0f * weight_D[i];",
        found_at=(0, "attn.norm"),
        named="scale_weight_missing",
    ),
    Fault(
        *("sum_in_place_of_mean", "", KERNEL, "rms_norm.hip"),
        old="ReduceWorkgroup<Sum, kNormWaves>(squares, scratch) / static_cast<float>(D);",
        new="ReduceWorkgroup<Sum, kNormWaves>(squares, scratch);",
        found_at=(0, "attn.norm"),
        named="sum_in_place_of_mean",
    ),
    Fault(
        *("ffn_norm_with_attentions_weight", "", HOST, "hip_engine.forward"),
        old='f"{block}.ffn_norm.weight"',
        new='f"{block}.attn_norm.weight"',
        found_at=(0, "ffn.norm"),
    ),
    Fault(
        *("gate_and_up_swapped", "", HOST, "hip_engine.forward"),
        old='_launch.swiglu(at["ffn.gate"], at["ffn.up"],',
        new='_launch.swiglu(at["ffn.up"], at["ffn.gate"],',
        found_at=(0, "ffn.act"),
        named="gate_and_up_exchanged",
    ),
    Fault(
        *("up_missing", "", KERNEL, "elementwise.hip"),
        old="y[e] = Silu(gate[e]) * up[e];",
        new="y[e] = Silu(gate[e]) + 0.0f * up[e];",
        found_at=(0, "ffn.act"),
        named="up_missing",
    ),
    Fault(
        *("final_norm_skipped", "", HOST, "hip_engine.forward"),
        old='self._project("final.norm", {output: "logits"}',
        new='self._project("resid.out", {output: "logits"}',
        found_at=(-1, "logits"),
    ),
)

DECOYS = (
    Fault("pages_of_16_slots", "", OPTIONS, options={"page_slots": 16}),
    Fault("pages_of_64_slots", "", OPTIONS, options={"page_slots": 64}),
    Fault(
        *("pages_from_the_other_end", "", HOST, "hip_engine.page_pool"),
        old="self._free = list(range(pages - 1, -1, -1))",
        new="self._free = list(range(pages))",
        options={"page_slots": 16},
    ),
    Fault("cache_of_float32_declared", "", OPTIONS, options={"kv_dtype": "float32"}),
    Fault("cache_of_bfloat16_declared", "", OPTIONS, options={"kv_dtype": "bfloat16"}),
    Fault("context_of_100", "", OPTIONS, options={"max_context": 100}),
    Fault("room_for_three_sequences", "", OPTIONS, options={"sequences": 3}),
    Fault(
        *("waves_summed_backwards", "", KERNEL, "reduce.h"),
        old="for (int wave = 1; wave < kWaves; ++wave)",
        new="for (int wave = kWaves - 1; wave > 0; --wave)",
    ),
    Fault(
        *("products_not_contracted", "", KERNEL, "attention_valu.h"),
        old="dot = __builtin_fmaf(q[g][e], k_row[e], dot);",
        new="dot = dot + q[g][e] * k_row[e];",
    ),
    Fault(
        *("reciprocal_in_place_of_division", "", KERNEL, "attn_merge.hip"),
        old="= out / sum;",
        new="= out * (1.0f / sum);",
    ),
)
FAULTS = {fault.name: fault for fault in CORPUS}
DECOYS_BY_NAME = {decoy.name: decoy for decoy in DECOYS}
QUICK = (
    *("kv_base_of_layer_0", "kv_append_for_query_heads", "softmax_scale_missing"),
    *("k_cached_before_rope", "gate_and_up_swapped", "pages_from_the_other_end"),
)
"""Host code alone: nothing is compiled again."""


def find(name: str) -> Fault:
    """A fault or a decoy. Raises UnknownFault with the nearest name."""
    known = FAULTS | DECOYS_BY_NAME
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise UnknownFault(f"unknown fault {name!r}: {hint}")


def chosen(names: Iterable[str]) -> list[str]:
    """Names of faults and decoys for names, `quick` or `all`."""
    sets = {"all": (*FAULTS, *DECOYS_BY_NAME), "quick": QUICK}
    return list(dict.fromkeys(one for name in names for one in sets.get(name, (name,))))
