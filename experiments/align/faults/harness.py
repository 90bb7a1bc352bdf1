"""Faults of the harness: comparisons that say nothing, or of the wrong things."""

from experiments.align.faults.fault import INCONCLUSIVE, REFUSED, Fault, patch
from experiments.align.faults.fault import ORACLE as NOT_SOUND

HARNESS = (
    Fault(
        "a_run_compared_with_itself",
        "G4",
        patch(
            "experiments.session",
            "            reference.trace, got.trace, arithmetic,",
            """            type(got.trace)(
                got.trace.run, reference.trace.rows_by_place | got.trace.rows_by_place
            ),
            got.trace,
            arithmetic,""",
        ),
        says="the same buffer on both sides",
        code=INCONCLUSIVE,
    ),
    Fault(
        "tokens_of_another_run",
        "G4",
        patch(
            "experiments.under_test",
            "reference.trace.run.prompt_sha256, reference.token_ids)",
            "reference.trace.run.prompt_sha256, reference.token_ids[::-1])",
        ),
        says="token ids differ from position 0 on",
        code=REFUSED,
    ),
    Fault(
        "tokens_of_a_byte_tokenizer",
        "L1",
        patch(
            "experiments.under_test",
            "    run = trace.Run(engine.model_sha256, reference.trace.run.prompt_sha256, "
            "reference.token_ids)\n",
            """    from experiments.flags import prompt_text

    ids = (1, *prompt_text(reference.prompt).encode())
    run = trace.Run(engine.model_sha256, reference.trace.run.prompt_sha256, ids)
""",
        ),
        says="token ids differ from position 0 on",
        code=REFUSED,
    ),
    Fault(
        "unequal_tokens_under_equal_labels",
        "G4",
        patch(
            "experiments.under_test",
            "token_id = reference.token_ids[position]",
            "token_id = reference.token_ids[-1 - position]",
        ),
        found_at=(-1, "embed"),
        named="rows_of_other_tokens",
    ),
    Fault(
        "reference_of_a_window",
        "G4",
        patch(
            "experiments.reference",
            "return [value[: position + 1] for position in range(len(value))]",
            "return [value[max(position - 7, 0) : position + 1] for position in range(len(value))]",
        ),
        says="has shape (8, 2, 64), expected (9, 2, 64)",
        code=INCONCLUSIVE,
    ),
    Fault(
        "replayed_at_positions_one_late",
        patches=patch(
            "experiments.arithmetic",
            """            elif name == "positions":
                read[name] = np.arange(len(side.run.token_ids_T))""",
            """            elif name == "positions":
                read[name] = np.arange(len(side.run.token_ids_T)) + 1""",
        ),
        says="the oracle does not replay itself",
        code=NOT_SOUND,
    ),
    Fault(
        "inputs_of_layer_0_for_all",
        patches=patch(
            "experiments.arithmetic",
            "read[name] = compare.captured(side, layer, name, self.dims)",
            "read[name] = compare.captured(side, min(layer, 0), name, self.dims)",
        ),
        says="the oracle does not replay itself",
        code=NOT_SOUND,
    ),
    Fault(
        "a_site_left_out",
        patches=patch(
            "experiments.under_test",
            "        for (layer, site), value in taps.items():\n",
            "        for (layer, site), value in taps.items():\n"
            '            if site == "ffn.up":\n'
            "                continue\n",
        ),
        says="ffn.up of layer 0 is missing",
        code=INCONCLUSIVE,
    ),
    Fault(
        "the_last_token_left_out",
        patches=patch(
            "experiments.under_test",
            "found = {place: np.concatenate(rows) for place, rows in self._rows.items()}",
            "found = {place: np.concatenate(rows)[:-1] for place, rows in self._rows.items()}",
        ),
        says="the trace holds 14 of 15 tokens",
        code=INCONCLUSIVE,
    ),
    Fault(
        "invariants_by_the_slots_of_layer_0",
        patches=patch(
            "experiments.kv_watch",
            "starts_LK = geometry.layer_stride_bytes * np.arange",
            "starts_LK = 0 * geometry.layer_stride_bytes * np.arange",
        ),
        says="KV invariant",
    ),
)
