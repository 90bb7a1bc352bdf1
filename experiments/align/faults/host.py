"""Faults of the engine's host code."""

from experiments.align.faults.fault import INCONCLUSIVE, Fault, patch

PREFILL = {"prompt": ("p4_sys",), "prefill": "valu"}

HOST = (
    Fault(
        "kv_base_of_layer_0",
        "R7",
        patch(
            "hip_engine.engine",
            "return self._cache.layer_offset_bytes(layer)",
            "return self._cache.layer_offset_bytes(0)",
        ),
        found_at=(1, "attn.out"),
        named="kv_base_of_layer_0",
    ),
    Fault(
        "kv_base_of_previous_layer",
        patches=patch(
            "hip_engine.engine",
            "return self._cache.layer_offset_bytes(layer)",
            "return self._cache.layer_offset_bytes(max(layer - 1, 0))",
        ),
        found_at=(1, "attn.out"),
        named="kv_base_of_previous_layer",
    ),
    Fault(
        "kv_append_for_query_heads",
        "R6",
        patch(
            "hip_engine.forward",
            'at["attn.v"], rows, view, shape[1:], T)',
            'at["attn.v"], rows, view, (shape[0], shape[2]), T)',
        ),
        says="kv_append",
    ),
    Fault(
        "k_cached_before_rope",
        patches=patch(
            "hip_engine.forward",
            'kv_append(cache, turned[1], at["attn.v"],',
            'kv_append(cache, at["attn.k"], at["attn.v"],',
        ),
        found_at=(0, "kv.k"),
        named="cached_before_the_rotation",
    ),
    Fault(
        "k_and_v_cached_for_each_other",
        patches=patch(
            "hip_engine.forward",
            'kv_append(cache, turned[1], at["attn.v"],',
            'kv_append(cache, at["attn.v"], turned[1],',
        ),
        found_at=(0, "kv.k"),
        named="cached_for_each_other",
    ),
    Fault(
        "k_and_v_projected_for_each_other",
        patches=patch(
            "hip_engine.forward",
            'f"attn.{name}" for name in "qkv"}',
            "f\"attn.{dict(q='q', k='v', v='k')[name]}\" for name in \"qkv\"}",
        ),
        found_at=(0, "attn.k"),
        named="weight_of_v",
    ),
    Fault(
        "attention_weights_of_layer_0",
        patches=patch(
            "hip_engine.forward",
            'qkv = {f"{block}.attn_{name}.weight"',
            'qkv = {f"blk.0.attn_{name}.weight"',
        ),
        found_at=(1, "attn.q"),
        named="weight_of_layer_0",
    ),
    Fault(
        "rope_base_doubled",
        patches=patch(
            "hip_engine.memory_plan",
            "np.float64(config.rope_base)",
            "(2 * np.float64(config.rope_base))",
        ),
        found_at=(0, "attn.q_rope"),
        named="base_of_another_model",
    ),
    Fault(
        "attention_of_unrotated_queries",
        patches=patch(
            "hip_engine.forward",
            'at["attn.q" if fused else "attn.q_rope"]',
            'at["attn.q"]',
        ),
        found_at=(0, "attn.out"),
        named="queries_not_rotated",
    ),
    Fault(
        "softmax_scale_missing",
        patches=patch(
            "hip_engine.forward",
            'args["scale"] = config.H**-0.5',
            'args["scale"] = 1.0',
        ),
        found_at=(0, "attn.out"),
        named="scale_missing",
    ),
    Fault(
        "softmax_scale_1_over_h",
        patches=patch(
            "hip_engine.forward",
            'args["scale"] = config.H**-0.5',
            'args["scale"] = config.H**-1.0',
        ),
        found_at=(0, "attn.out"),
        named="scale_is_1_over_h",
    ),
    Fault(
        "norm_epsilon_of_another_model",
        patches=patch(
            "hip_engine.forward",
            "config.D, config.norm_eps, T)",
            "config.D, 100 * config.norm_eps, T)",
        ),
        found_at=(0, "attn.norm"),
        named="epsilon_of_another_model",
    ),
    Fault(
        "ffn_norm_with_attentions_weight",
        patches=patch(
            "hip_engine.forward",
            'f"{block}.ffn_norm.weight"',
            'f"{block}.attn_norm.weight"',
        ),
        found_at=(0, "ffn.norm"),
        named="weight_of_attn_norm",
    ),
    Fault(
        "gate_and_up_swapped",
        patches=patch(
            "hip_engine.forward",
            '_launch.swiglu(at["ffn.gate"], at["ffn.up"],',
            '_launch.swiglu(at["ffn.up"], at["ffn.gate"],',
        ),
        found_at=(0, "ffn.act"),
        named="gate_and_up_exchanged",
    ),
    Fault(
        "final_norm_skipped",
        patches=patch(
            "hip_engine.forward",
            'self._project("final.norm", {output: "logits"}',
            'self._project("resid.out", {output: "logits"}',
        ),
        found_at=(-1, "logits"),
        named="input_not_normalised",
    ),
    Fault(
        "k_and_v_read_for_each_other",
        patches=patch(
            "hip_engine.forward",
            'args["kv"] = self._cache.view(layer, self._read_offset_bytes(layer))',
            """args["kv"] = self._cache.view(layer, self._read_offset_bytes(layer))
        k, v = int(args["kv"]["k_PKJH"]), int(args["kv"]["v_PKJH"])
        args["kv"]["k_PKJH"], args["kv"]["v_PKJH"] = v, k""",
        ),
        found_at=(0, "attn.out"),
        named="keys_and_values_swapped",
    ),
    Fault(
        "prefill_ignores_the_cache",
        "L13",
        patch(
            "hip_engine.forward",
            'args["kv"] = self._cache.view(layer, self._read_offset_bytes(layer))',
            """first = S - T if T > 1 else 0
        if T > 1:
            self._launch.device.write(self._buffers["step.top1"], np.arange(T, dtype=np.int32))
        args["position_T"] = at["step.top1" if T > 1 else "step.position"]
        skipped = first * self.config.H * 2
        args["kv"] = self._cache.view(layer, self._read_offset_bytes(layer) + skipped)""",
        ),
        found_at=(0, "attn.out"),
        named="cache_ignored_in_chunks_of_16",
        options={"max_rows": 16},
        run=PREFILL,
    ),
    Fault(
        "causal_mask_missing",
        patches=patch(
            "hip_engine.forward",
            'args["kv"] = self._cache.view(layer, self._read_offset_bytes(layer))',
            """last = np.full(T, S - 1, np.int32)
        if T > 1:
            self._launch.device.write(self._buffers["step.top1"], last)
        args["position_T"] = at["step.top1" if T > 1 else "step.position"]
        args["kv"] = self._cache.view(layer, self._read_offset_bytes(layer))""",
        ),
        found_at=(0, "attn.out"),
        named="causal_mask_missing_in_chunks_of_16",
        options={"max_rows": 16},
        run=PREFILL,
    ),
    Fault(
        "positions_restart_in_each_pass",
        patches=patch(
            "hip_engine.engine",
            "Row(sequence, token, first + i)",
            "Row(sequence, token, i + 0 * first)",
        ),
        found_at=(0, "attn.q_rope"),
        named="positions_restart_every_16",
        options={"max_rows": 16},
        run=PREFILL,
    ),
    Fault(
        "position_not_reset_between_prompts",
        patches=patch(
            "hip_engine.engine",
            "        self._cache.clear()\n        self._cache.pool.open()\n",
            """        kept = self._cache.pool.length(0) if self._cache.pool.sequences else 0
        self._cache.clear()
        self._cache.pool.open()
        self._cache.pool.reserve({0: kept})
        self._cache.pool.advance(0, kept)
        self._cache.write_tables()
""",
        ),
        found_at=(0, "attn.q_rope"),
        named="position_off_by_a_constant",
        run={"prompt": ("p0_short", "p5_ba")},
    ),
    Fault(
        "block_table_stale",
        patches=patch(
            "hip_engine.engine",
            "self._cache.copy_page(self._launcher, pages)\n        self._cache.write_tables()\n",
            "self._cache.copy_page(self._launcher, pages)\n",
        ),
        found_at=(0, "kv.k"),
        named="pages_of_16_all_on_the_first",
        options={"page_slots": 16},
        run={"prompt": ("p4_sys",)},
    ),
    Fault(
        "angles_per_element",
        patches=patch(
            "hip_engine.memory_plan", "(-2.0 * pairs / config.H)", "(-1.0 * pairs / config.H)"
        ),
        found_at=(0, "attn.q_rope"),
        named="angles_per_element",
    ),
    Fault(
        "norm_weight_of_the_layer_before",
        patches=patch(
            "hip_engine.forward",
            'f"{block}.attn_norm.weight"',
            'f"blk.{max(layer - 1, 0)}.attn_norm.weight"',
        ),
        found_at=(1, "attn.norm"),
        named="weight_of_the_layer_before",
    ),
    Fault(
        "second_sum_past_attention",
        patches=patch(
            "hip_engine.forward",
            'residual_add(at["resid.mid"], at["ffn.down"]',
            'residual_add(at["embed"], at["ffn.down"]',
        ),
        found_at=(0, "resid.out"),
        named="residual_of_the_layers_input",
    ),
    Fault(
        "logits_of_the_token_before",
        "R3",
        patch(
            "hip_engine.forward",
            """        self._project("final.norm", {output: "logits"}, T, choice.gemm)
        tap(NO_LAYER, "logits")""",
            """        tap(NO_LAYER, "logits")
        self._project("final.norm", {output: "logits"}, T, choice.gemm)""",
        ),
        found_at=(-1, "logits"),
        named="slot_of_the_token_before",
    ),
    Fault(
        "logits_from_the_embedding",
        patches=patch(
            "hip_engine.forward",
            'output = "output.weight" if "output.weight" in self._tensors else embedding.name',
            "output = embedding.name",
        ),
        found_at=(-1, "logits"),
        named="weight_of_the_embedding",
    ),
    Fault(
        "graph_reads_logits_where_it_was_captured",
        "L9",
        patch(
            "hip_engine.forward",
            'rows = at["step.top1"], at["step.token"], at["step.position"]',
            """rows = at["step.top1"], at["step.token"], at["step.position"]
            slot = at["logits"] + 4 * self.config.V
            self._launch.argmax(slot, at["step.top1"], self.config.V, T)""",
        ),
        says="what runs is not what was judged",
    ),
    Fault(
        "cache_offset_in_32_bits",
        patches=patch(
            "hip_engine.kv_cache",
            "return layer * self.layer_stride * self.layout.kind.raw.itemsize",
            "offset = layer * self.layer_stride * self.layout.kind.raw.itemsize\n"
            "        return (offset + 2**31) % 2**32 - 2**31",
        ),
        says="kv_append_f16",
        options={"page_slots": 256, "pages": 16385},
        run={"kv_invariants": False},
    ),
    Fault(
        "route_label_without_its_kernel",
        "G4",
        patch(
            "hip_engine.routes", "attn_{route.kernel}_{route.matmul}_", "attn_{route.kernel}_valu_"
        ),
        says="not attested",
        code=INCONCLUSIVE,
        run={"route": "manual/mfma"},
    ),
)
