"""The judge on a toy engine with known faults: what it says, and where it says it."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.align import compare, divergence, trace, vacuity, verdict
from experiments.align.errors import UnequalKeys
from experiments.align.verdict import Status
from tests.experiments import toy
from tests.experiments.toy import SITE


def judge(got, ref=None, declared=toy.DECLARED, arithmetic=toy.ARITHMETIC):
    ref = toy.oracle() if ref is None else ref
    found = compare.judge_all(ref, got, arithmetic, declared, range(toy.LAYERS), ("embed", SITE))
    return {(v.layer, v.site): v for v in found}


def judgements(verdicts):
    return [j for v in verdicts.values() for j in v.judgements]


def scaled_in_layer_2(layer, y_TD):
    return y_TD * np.float32(1.25) if layer == 2 else y_TD


def test_an_honest_engine_is_within_its_floor_and_its_copies_are_exact():
    verdicts = judge(toy.engine())
    assert verdicts[-1, "embed"].status == Status.EXACT
    assert {verdicts[layer, SITE].status for layer in range(toy.LAYERS)} == {Status.WITHIN_FLOOR}
    assert divergence.first_divergence(judgements(verdicts)) is None


def test_a_wrong_op_is_blamed_and_its_heirs_are_not():
    verdicts = judge(toy.engine(scaled_in_layer_2))
    assert verdicts[2, SITE].status == Status.STRUCTURAL
    assert verdicts[3, SITE].status == Status.WITHIN_FLOOR
    assert verdicts[3, SITE].worst.total.max > verdicts[3, SITE].worst.local.max * 1e3
    first = divergence.first_divergence(judgements(verdicts))
    assert (first.first.key.layer, first.first.key.site) == (2, SITE)
    assert first.first.key.position == 0
    assert first.clean_layers == (0, 1, 3)
    assert first.clean_before == first.judged_before == 3


def test_the_first_divergence_is_the_first_token_that_went_wrong():
    def late(layer, y_TD):
        spoiled = y_TD.copy()
        if layer == 1:
            spoiled[3] += 1
        return spoiled

    first = divergence.first_divergence(judgements(judge(toy.engine(late)))).first
    assert (first.key.position, first.key.token_id, first.key.layer) == (3, 17, 1)


def test_a_small_error_above_the_floor_is_numeric_and_not_structural():
    def halved_precision(layer, y_TD):
        return y_TD.astype(np.float16).astype(np.float32) if layer == 1 else y_TD

    found = judge(toy.engine(halved_precision))[1, SITE]
    assert found.status == Status.ABOVE_FLOOR


def test_budgets_add_up():
    for found in judgements(judge(toy.engine(scaled_in_layer_2))):
        assert found.closure_ratio <= 1.0


def test_an_oracle_that_does_not_replay_itself_is_not_trusted():
    ref = toy.oracle()
    rows = dict(ref.rows_by_place)
    rows[1, SITE] = rows[1, SITE] * (1 + np.finfo(np.float32).eps)
    found = judge(toy.engine(), replace(ref, rows_by_place=rows))[1, SITE]
    assert found.status == Status.INCONCLUSIVE and "replay itself" in found.worst.reason


def test_the_first_nan_is_blamed_on_the_op_whose_inputs_were_clean():
    def nan_in_layer_1(layer, y_TD):
        spoiled = y_TD.copy()
        if layer == 1:
            spoiled[2, 5] = np.nan
        return spoiled

    verdicts = judge(toy.engine(nan_in_layer_1))
    blamed, heir = verdicts[1, SITE].judgements[2], verdicts[2, SITE].judgements[2]
    assert blamed.status == Status.NONFINITE and blamed.blames_this_op
    assert "(5,), inputs clean" in blamed.reason
    assert heir.status == Status.NONFINITE and not heir.blames_this_op
    assert divergence.first_divergence(judgements(verdicts)).first is blamed


@pytest.mark.parametrize(
    "spoil, status",
    [
        (lambda rows: rows[:, :-1], Status.SHAPE),
        (lambda rows: rows.astype(np.float64) * (1 + 2 * toy.U64), Status.DTYPE),
        (lambda rows: rows[:-1], Status.MISSING),
    ],
    ids=["one_element_short", "another_dtype", "one_token_short"],
)
def test_lower_rungs_of_the_ladder_win(spoil, status):
    got = toy.engine()
    rows = dict(got.rows_by_place)
    rows[1, SITE] = spoil(rows[1, SITE])
    assert judge(replace(got, rows_by_place=rows))[1, SITE].status == status


def test_a_declared_site_without_a_tensor_is_missing_and_its_reader_is_inconclusive():
    verdicts = judge(toy.without(toy.engine(), 1, SITE))
    assert verdicts[1, SITE].status == Status.MISSING
    assert verdicts[2, SITE].status == Status.INCONCLUSIVE
    assert "input ffn.norm of layer 1 was not captured" in verdicts[2, SITE].worst.reason


def test_a_fused_site_is_neither_a_pass_nor_a_failure():
    declared = replace(toy.DECLARED, fused=frozenset({SITE}))
    status = judge(toy.engine(), declared=declared)[1, SITE].status
    assert status == Status.FUSED
    assert status not in verdict.CLEAN | verdict.FAILED | verdict.UNDECIDED


def test_a_run_compared_with_itself_is_vacuous():
    ref = toy.oracle()
    declared = replace(toy.DECLARED, stores={SITE: "float64", "embed": "float64"})
    assert {v.status for v in judge(ref, ref, declared).values()} == {Status.VACUOUS}


def test_the_rounded_reference_handed_back_is_vacuous():
    ref = toy.oracle()
    rounded = {place: rows.astype(np.float32) for place, rows in ref.rows_by_place.items()}
    # Each layer's inputs are the rounded reference too, so that no local error shows.
    found = judge(replace(ref, rows_by_place=rounded))
    assert found[1, SITE].status == Status.VACUOUS


def test_tensors_in_which_nothing_could_differ_are_vacuous():
    zeros = {place: np.zeros_like(rows) for place, rows in toy.engine().rows_by_place.items()}
    ref = toy.oracle()
    nothing = {place: np.zeros_like(rows) for place, rows in ref.rows_by_place.items()}
    found = judge(replace(ref, rows_by_place=zeros), replace(ref, rows_by_place=nothing))
    assert found[1, SITE].status == Status.VACUOUS


@pytest.mark.parametrize("side", ["reference", "engine"])
def test_one_row_shown_for_every_token_is_vacuous(side):
    """A broadcast and a copy of it: fewer distinct elements than claimed."""
    for spread in (np.broadcast_to, lambda row, shape: np.broadcast_to(row, shape).copy()):
        whole = spread(toy.EMBED_TD[0], (toy.T, toy.D))
        sides = {"reference": toy.oracle(), "engine": toy.engine()}
        rows = dict(sides[side].rows_by_place)
        rows[-1, "embed"] = whole.astype(rows[-1, "embed"].dtype, copy=False)
        sides[side] = replace(sides[side], rows_by_place=rows)
        why = vacuity.why_vacuous(
            "embed", *(sides[name].rows(-1, "embed") for name in ("reference", "engine")), toy.T
        )
        assert f"the {side} holds" in why, why


def test_a_run_of_one_token_repeated_is_vacuous(monkeypatch):
    monkeypatch.setattr(toy, "EMBED_TD", np.repeat(toy.EMBED_TD[:1], toy.T, axis=0))
    claimed = toy.without(toy.oracle(), -1, "embed")
    found = compare.judge_site(
        claimed, toy.engine(), replace(toy.ARITHMETIC, inputs=repeated), toy.DECLARED, 0, SITE
    )
    assert found.status == Status.VACUOUS
    assert f"distinct rows, of {toy.T} distinct tokens" in found.worst.reason


def repeated(trace, layer, site):
    return {"x": toy.EMBED_TD}


def declared_with(error):
    """The toy's op in the precision it declares, made wrong by `error`."""

    def declared(layer, site, inputs):
        right = toy.op64(layer, site, {"x": inputs["x"].astype(np.float32)})
        return compare.RoundingModel(right + error * (site == SITE))

    return replace(toy.ARITHMETIC, declared=declared)


def test_a_bound_that_the_declared_precision_itself_exceeds_is_wrong():
    found = judge(toy.engine(), arithmetic=declared_with(1e-3))[1, SITE]
    assert found.status == Status.INCONCLUSIVE
    assert "sources of the floor disagree" in found.worst.reason
    assert found.worst.ablation_ratio > 1
    agreed = judge(toy.engine(), arithmetic=declared_with(0.0))[1, SITE]
    assert agreed.status == Status.WITHIN_FLOOR and agreed.worst.ablation_ratio <= 1


def test_an_error_beyond_every_source_of_the_floor_still_fails():
    found = judge(toy.engine(scaled_in_layer_2), arithmetic=declared_with(1e-3))[2, SITE]
    assert found.status == Status.STRUCTURAL


def test_an_ablation_in_another_order_has_a_bound_of_its_own_and_loosens_nothing():
    def declared(layer, site, inputs):
        right = toy.op64(layer, site, inputs)
        return compare.RoundingModel(right + 1e-3 * (site == SITE), np.full_like(right, 1e-2))

    arithmetic = replace(toy.ARITHMETIC, declared=declared)
    found = judge(toy.engine(), arithmetic=arithmetic)[1, SITE]
    assert found.status == Status.WITHIN_FLOOR and 0.09 < found.worst.ablation_ratio < 0.11

    def slightly(layer, y_TD):
        return y_TD + np.float32(5e-4) * (layer == 1)

    assert judge(toy.engine(slightly), arithmetic=arithmetic)[1, SITE].status in verdict.FAILED


def test_elements_that_are_not_the_modelled_bits_are_counted():
    got = toy.engine()

    def bits(layer, site, inputs):
        predicted = np.array(got.rows(layer, site))
        predicted[2, 3] = np.nextafter(predicted[2, 3], np.float32(9))
        return predicted if site == SITE else None

    found = judge(got, arithmetic=replace(toy.ARITHMETIC, bits=bits))
    assert [j.bits_differ for j in found[1, SITE].judgements] == [0, 0, 1, 0, 0]
    assert found[-1, "embed"].worst.bits_differ is None


@pytest.mark.parametrize(
    "change, field",
    [
        (dict(model_sha256="another"), "model_sha256"),
        (dict(prompt_sha256="another"), "prompt_sha256"),
    ],
)
def test_unequal_keys_are_refused_before_any_verdict(change, field):
    got = toy.engine()
    with pytest.raises(UnequalKeys, match=f"{field} is"):
        judge(replace(got, run=replace(got.run, **change)))


def test_other_tokens_are_refused_at_the_first_and_with_what_it_spells():
    got, other = toy.engine(), (7, 11, 99, 17, 19)
    arithmetic = replace(toy.ARITHMETIC, spell={13: "the", 99: "!"}.get)
    with pytest.raises(UnequalKeys) as refused:
        judge(replace(got, run=replace(got.run, token_ids_T=other)), arithmetic=arithmetic)
    assert "differ from position 2 on: 13 ('the') in the reference and 99 ('!')" in str(refused)


def test_a_window_is_not_compared_with_the_whole():
    got = toy.engine()
    with pytest.raises(UnequalKeys, match="no token in the trace under test, of 5 and 4 tokens"):
        judge(replace(got, run=replace(got.run, token_ids_T=(7, 11, 13, 17))))


def test_equal_keys_are_compared():
    key = toy.RUN.key(1, 2, SITE)
    trace.require_equal(key, toy.RUN.key(1, 2, SITE))
    for change in (dict(position=2), dict(layer=0), dict(site="logits")):
        with pytest.raises(UnequalKeys):
            trace.require_equal(key, replace(key, **change))
