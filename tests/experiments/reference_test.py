"""The oracle's side: it judges an honest engine clean, and its own failures are complaints."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import arithmetic, reference, token_blocks
from experiments.align import compare, sites, split, trace
from experiments.align.verdict import CLEAN, Status
from experiments.flags import UsageError
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.taps import Taps

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def oracle(tiny_path):
    return Oracle.open(tiny_path, Policy.fp64())


@pytest.fixture(scope="module")
def ref(oracle):
    return reference.make_reference(oracle, "p0_short", 6, LAYERS)


def as_engine(oracle, ref, policy):
    """The oracle under another policy, in the place of an engine."""
    layers = reference.needed_layers(LAYERS, oracle.config.layers)
    taps = Taps(sites.SITES, layers)
    step = oracle.with_policy(policy).prefill(list(ref.token_ids), taps=taps)
    rows = {place: reference.rows_of(place[1], value) for place, value in step.taps.items()}
    return trace.Trace(ref.trace.run, rows)


def judge(oracle, ref, got, dtype="float32", fused=()):
    dims = oracle.config.dimensions
    stored = [site for site in sites.SITES if site not in fused]
    precision = {site: {"store": dtype, "accumulate": dtype} for site in stored}
    declared = compare.Declared(dims, dict.fromkeys(stored, dtype), frozenset(fused))
    ops = arithmetic.OracleArithmetic(oracle, dims, precision).as_arithmetic()
    found = compare.judge_all(ref.trace, got, ops, declared, LAYERS, sites.SITES)
    return {(v.layer, v.site): v for v in found}


def test_the_oracle_in_fp32_passes_as_an_engine_at_every_site(oracle, ref):
    verdicts = judge(oracle, ref, as_engine(oracle, ref, Policy.fp32()))
    assert len(verdicts) == 2 * 19 + 3
    assert {v.status for v in verdicts.values()} <= CLEAN
    assert all(j.closure_ratio <= 1 for v in verdicts.values() for j in v.judgements)


def test_the_oracle_in_fp64_under_the_name_of_fp32_is_not_believed(oracle, ref):
    verdicts = judge(oracle, ref, as_engine(oracle, ref, Policy.fp64()))
    assert verdicts[2, "attn.out"].status is Status.DTYPE


def test_attention_in_blocks_of_queries_is_judged_as_all_at_once(oracle, ref, monkeypatch):
    """Slabs that were overwritten, and what is not a number, too."""
    got = as_engine(oracle, ref, Policy.fp32())
    rows = dict(got.rows_by_place)
    slabs = [slab_SKH.copy() for slab_SKH in rows[2, "kv.v"]]
    for slab_SKH in slabs[5:]:
        slab_SKH[1] *= 2
    slabs[-1][3, 0, 0] = np.nan
    rows[2, "kv.v"] = slabs
    got = replace(got, rows_by_place=rows)
    whole = judge(oracle, ref, got)
    monkeypatch.setattr(token_blocks, "QUERIES", 3)
    for place, found in judge(oracle, ref, got).items():
        ours, theirs = ([j.status for j in v.judgements] for v in (found, whole[place]))
        assert ours == theirs, place
    ratios = [
        np.array([j.ratio_max for j in found[0, "attn.out"].judgements])
        for found in (whole, judge(oracle, ref, got))
    ]
    # A block's sums are no longer than its slab: floors of early tokens are tighter.
    assert np.all(ratios[1] >= 0.99 * ratios[0])
    np.testing.assert_allclose(ratios[1][-3:], ratios[0][-3:], rtol=1e-6)


def test_a_split_computes_what_its_corners_share_once(oracle, ref, monkeypatch):
    got = as_engine(oracle, ref, Policy.fp32())
    evaluated = []
    apply = Oracle.apply

    def counted(self, op, layer, tensors):
        evaluated.append(op.site)
        return apply(self, op, layer, tensors)

    ops = arithmetic.OracleArithmetic(oracle, oracle.config.dimensions, {})
    read = [ops.inputs(side, 2, "attn.out") for side in (ref.trace, got)]
    mixed = split.mixtures(ops.through("attn.out"), *read)
    monkeypatch.setattr(Oracle, "apply", counted)
    ops.op64_of_each(2, "attn.out", [*read, *mixed.values()])
    counts = [evaluated.count(site) for site in ("attn.scores", "attn.probs", "attn.out")]
    assert counts == [4, 4, 8]


ROTATED = ("attn.q_rope", "attn.k_rope")


def without(got, fused):
    kept = {place: rows for place, rows in got.rows_by_place.items() if place[1] not in fused}
    return replace(got, rows_by_place=kept)


def test_ops_that_read_a_fused_tensor_are_judged_from_the_one_before(oracle, ref):
    got = without(as_engine(oracle, ref, Policy.fp32()), ROTATED)
    verdicts = judge(oracle, ref, got, fused=ROTATED)
    for (_, site), found in verdicts.items():
        assert found.status in ({Status.FUSED} if site in ROTATED else CLEAN)
    assert verdicts[2, "kv.k"].status is Status.WITHIN_FLOOR
    assert verdicts[2, "attn.out"].worst.ratio_max > 0


def test_a_wrong_rotation_in_registers_is_blamed_on_what_was_stored_next(oracle, ref):
    got = as_engine(oracle, ref, Policy.fp32())
    rows = dict(without(got, ROTATED).rows_by_place)
    unrotated_TKH = got.rows(2, "attn.k")
    rows[2, "kv.k"] = [unrotated_TKH[: t + 1] for t in range(len(unrotated_TKH))]
    verdicts = judge(oracle, ref, replace(got, rows_by_place=rows), fused=ROTATED)
    statuses = [j.status for j in verdicts[2, "kv.k"].judgements]
    # Position 0 is not turned, so that only later tokens can show it.
    assert statuses[0] in CLEAN and set(statuses[1:]) == {Status.STRUCTURAL}


def test_an_overwritten_slot_is_blamed_on_the_step_that_overwrote_it(oracle, ref):
    got = as_engine(oracle, ref, Policy.fp32())
    rows = dict(got.rows_by_place)
    slabs = [slab_SKH.copy() for slab_SKH in rows[2, "kv.v"]]
    for slab_SKH in slabs[5:]:
        slab_SKH[1] *= 2
    rows[2, "kv.v"] = slabs
    verdicts = judge(oracle, ref, replace(got, rows_by_place=rows))
    statuses = [j.status for j in verdicts[2, "kv.v"].judgements]
    assert statuses[:5] == [Status.EXACT] * 5 and statuses[5] is Status.STRUCTURAL
    assert statuses[6:] == [Status.EXACT] * (len(statuses) - 6)
    before = verdicts[2, "attn.out"].judgements[:5]
    assert {j.status for j in before} <= CLEAN


def test_prompts_get_the_models_first_token_once(oracle, tmp_path):
    ids = reference.tokenise(oracle, "p0_short", 1)
    own = tmp_path / "own.txt"
    own.write_text("<|begin_of_text|>Hi")
    if oracle.tokenizer.add_bos:
        assert ids == reference.tokenise(oracle, str(own), 1)
    assert ids.count(oracle.tokenizer.bos_id) == int(oracle.tokenizer.add_bos)


def test_a_prompt_that_cannot_fit_is_refused_by_name(oracle, tmp_path):
    with pytest.raises(UsageError, match="prompt p0_short has .* context is 128"):
        reference.tokenise(oracle, "p0_short", 128)


def test_the_reference_has_no_complaints(ref):
    assert ref.complaints == ()


def test_ids_of_a_byte_tokenizer_are_a_complaint(oracle):
    """GRETA's L1, in the oracle's place: another BOS, and bytes for ids."""
    bos = oracle.tokenizer.bos_id
    right = oracle.tokenizer.encode_prompt("Hi there")
    assert reference._other_ids(oracle, "Hi there", right) == []
    (complaint,) = reference._other_ids(oracle, "Hi", [1, *b"Hi"])
    assert complaint == f"token ids: a prompt begins with 1, the file's BOS is {bos}"
    (complaint,) = reference._other_ids(oracle, "Hi", [bos, *b"KL"])
    assert complaint.startswith("token ids: the prompt's spell")


def test_attention_weights_that_miss_a_window_are_a_complaint(oracle, ref):
    """GRETA's R8: the reference summed only the newest keys."""
    taps = oracle.prefill(list(ref.token_ids), Taps("attn.probs", 0)).taps
    prob_TNS = taps[0, "attn.probs"].copy()
    assert reference._weights_sum_to_one(oracle, 0, prob_TNS) == []
    prob_TNS[-1, :, 0] = 0
    complaints = reference._weights_sum_to_one(oracle, 0, prob_TNS)
    assert len(complaints) == 1 and f"position {len(prob_TNS) - 1} sum to 1 only" in complaints[0]


def test_a_decode_that_is_not_its_prefill_is_a_complaint(oracle, ref):
    stepwise_TV = ref.logits_TV[-3:].copy()
    tokens = list(ref.token_ids)
    assert reference._prefill_equals_decode(oracle, ref.logits_TV, stepwise_TV, tokens) == []
    shifted_TV = np.roll(stepwise_TV, 1, axis=0)
    (complaint,) = reference._prefill_equals_decode(oracle, ref.logits_TV, shifted_TV, tokens)
    assert "prefill and decode logits differ" in complaint
