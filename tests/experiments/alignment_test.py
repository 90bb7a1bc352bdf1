"""What a run means as an exit code, and the assertions that decide."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import flags
from experiments.align import compare, tokens, verdict
from experiments.align.floors_file import Change
from experiments.align.report import RouteResult
from experiments.alignment import Alignment, PromptResult, assert_within_floors
from experiments.flips import EXPLAINED, UNEXPLAINED, FlipVerdict, NextTokens
from greta_jax.selfcheck import Finding
from tests.experiments import toy
from tests.experiments.toy import SITE


def verdicts_of(got, ref=None):
    ref = toy.oracle() if ref is None else ref
    sites = ("embed", SITE)
    return list(compare.judge_all(ref, got, toy.ARITHMETIC, toy.DECLARED, range(toy.LAYERS), sites))


def result_of(got, complaints=(), observed="manual/valu", flips=(), **choices):
    top1 = np.arange(toy.T)
    reference = SimpleNamespace(complaints=complaints, top1_T=top1, prompt_tokens=2)
    attestation = SimpleNamespace(observed=observed, attention_mfma=0, attention_contains={})
    flipped = tuple(-1 if t in flips else int(t) for t in top1)
    step = SimpleNamespace(layers=[], stray=[])
    choices = dict(top1_T=flipped, untapped_top1=flipped[2:], misread_top1="") | choices
    run = SimpleNamespace(watched=[step], attestation=attestation, **choices)
    verdicts = verdicts_of(got)
    try:
        assert_within_floors(verdicts, got, toy.DECLARED.dims)
    except AssertionError as error:
        return PromptResult(reference, run, verdicts, str(error))
    return PromptResult(reference, run, verdicts, "")


def alignment_of(result, routes=(), **faults):
    values = flags.define()
    values(["b3_20.py"])
    config = flags.effective(values, {}, "artifacts")
    facts = {"route_resolved": "manual/valu"}
    run = Alignment(config, facts, (0, 1), toy.DECLARED.dims, None, **faults)
    run.results["toy"] = result
    run.routes.extend(routes)
    return run


def doubled_in_layer_1(layer, y_TD):
    return y_TD * 2 if layer == 1 else y_TD


def test_an_honest_engine_passes():
    assert alignment_of(result_of(toy.engine())).exit_code == flags.EXIT_PASS


def test_an_error_above_its_floor_fails_through_the_assertion():
    alignment = alignment_of(result_of(toy.engine(doubled_in_layer_1)))
    assert alignment.exit_code == flags.EXIT_FAIL
    assert "ffn.norm of layer 1, position 0: Assertion assert_trees" in alignment.reasons()[0][1]


def test_numbers_within_their_floors_that_the_declared_dtype_does_not_have_fail():
    def a_part_in_2_to_the_25(layer, y_TD):
        return y_TD.astype(np.float64) * (1 + 2.0**-25) if layer == 1 else y_TD

    alignment = alignment_of(result_of(toy.engine(a_part_in_2_to_the_25)))
    assert alignment.exit_code == flags.EXIT_FAIL
    assert "ffn.norm of layer 1, position 0: declared float32" in alignment.reasons()[0][1]


def test_the_assertion_itself_decides():
    result = replace(result_of(toy.engine(doubled_in_layer_1)), assertion="")
    assert alignment_of(result).exit_code == flags.EXIT_PASS


def test_assertion_and_verdict_never_disagree():
    for factor in (0.5, 0.999, 1.001, 2.0):
        [found] = verdicts_of(toy.engine())[1:2]
        scaled = tuple(ratio / ratio.max() * factor for ratio in found.ratios)
        got = toy.engine()
        if factor <= 1:
            assert_within_floors([replace(found, ratios=scaled)], got, toy.DECLARED.dims)
        else:
            with pytest.raises(AssertionError, match="ffn.norm of layer 0, position 0"):
                assert_within_floors([replace(found, ratios=scaled)], got, toy.DECLARED.dims)


def test_an_oracle_that_fails_its_own_check_outranks_everything():
    result = result_of(toy.engine(doubled_in_layer_1), complaints=("weights sum to 0.9",))
    assert alignment_of(result).exit_code == flags.EXIT_ORACLE


@pytest.mark.parametrize(
    "result, why",
    [
        (dict(observed="fused/valu"), "not attested"),
        (dict(flips=(3,)), "top-1 differs at position 3, and nothing judged why"),
    ],
)
def test_doubt_is_neither_a_pass_nor_a_failure(result, why):
    alignment = alignment_of(result_of(toy.engine(), **result))
    assert alignment.exit_code == flags.EXIT_INCONCLUSIVE
    assert why in alignment.reasons()[0][1]


def next_tokens_of(*flips):
    ref_TV = np.eye(toy.T)
    return NextTokens(tokens.compare(ref_TV, ref_TV), flips, ())


FLIP = tokens.Flip(position=3, ref=3, got=1, margin=0.5)


def test_a_flip_that_rounding_explains_does_not_fail():
    explained = FlipVerdict(FLIP, EXPLAINED, "")
    result = replace(result_of(toy.engine(), flips=(3,)), next_tokens=next_tokens_of(explained))
    assert alignment_of(result).exit_code == flags.EXIT_PASS


def test_a_flip_that_rounding_does_not_explain_fails():
    unexplained = FlipVerdict(FLIP, UNEXPLAINED, "margin above rounding")
    result = replace(result_of(toy.engine(), flips=(3,)), next_tokens=next_tokens_of(unexplained))
    alignment = alignment_of(result)
    assert alignment.exit_code == flags.EXIT_FAIL
    assert "position 3: token 1 instead of 3, unexplained" in alignment.reasons()[0][1]
    assert "--layers=all" in alignment.reasons()[0][1]


@pytest.mark.parametrize(
    "saved, code",
    [(0.9, flags.EXIT_FAIL), (1.1, flags.EXIT_PASS), (None, flags.EXIT_INCONCLUSIVE)],
    ids=["looser", "tighter", "not_saved"],
)
def test_a_floor_that_is_looser_than_it_was_fails(saved, code):
    change = Change("toy", 1, SITE, saved, 1.0)
    alignment = alignment_of(result_of(toy.engine()), floor_changes=[change])
    assert alignment.exit_code == code
    assert [text for _, text in alignment.reasons()] == (
        [f"--check_floors: {change.sentence()}"] if code else []
    )


def test_another_route_with_other_tokens_is_doubt():
    differs = RouteResult("fused/mfma", "toy", "fused/mfma", 1, 2, "token differs")
    impossible = RouteResult("manual/mfma", status="not possible")
    alignment = alignment_of(result_of(toy.engine()), [impossible])
    assert alignment.exit_code == flags.EXIT_PASS
    alignment = alignment_of(result_of(toy.engine()), [impossible, differs])
    assert alignment.exit_code == flags.EXIT_INCONCLUSIVE
    assert "fused/mfma (token differs)" in alignment.reasons()[0][1]


def test_a_device_fault_fails():
    alignment = alignment_of(result_of(toy.engine()), device_faults=["rope: lane 3"])
    assert alignment.exit_code == flags.EXIT_FAIL


def test_a_run_without_results_is_not_a_pass():
    alignment = alignment_of(result_of(toy.engine()))
    alignment.results.clear()
    assert alignment.exit_code == flags.EXIT_INCONCLUSIVE


def test_an_explained_flip_fails_where_the_same_tokens_are_asked_for():
    result = result_of(toy.engine(), flips=(3,))
    result = replace(result, next_tokens=next_tokens_of(FlipVerdict(FLIP, EXPLAINED, "")))
    alignment = alignment_of(result)
    assert alignment.exit_code == flags.EXIT_PASS
    asked = replace(alignment, config=replace(alignment.config, same_top1=True))
    assert asked.exit_code == flags.EXIT_FAIL
    assert "--same_top1: top-1 differs at position 3" in asked.reasons()[0][1]


def test_a_run_that_differs_without_taps_fails():
    changed = alignment_of(result_of(toy.engine(), untapped_top1=(2, 3, 9)))
    assert changed.exit_code == flags.EXIT_FAIL
    assert "top-1 at position 4 is 4 with taps, 9 without" in changed.reasons()[0][1]


def test_a_choice_that_is_not_the_largest_logit_fails():
    misread = alignment_of(result_of(toy.engine(), misread_top1="7 for 3 at position 1"))
    assert misread.exit_code == flags.EXIT_FAIL
    assert "top-1 is not the largest logit: 7 for 3" in misread.reasons()[0][1]


def test_an_oracle_that_breaks_a_law_outranks_the_engines_failure():
    wrong = alignment_of(result_of(toy.engine(), misread_top1="7 for 3 at position 1"))
    wrong.laws.append(Finding("rotation_keeps_length", 1e9))
    assert wrong.exit_code == flags.EXIT_ORACLE


def test_nothing_judged_is_not_a_pass():
    result = replace(result_of(toy.engine()), verdicts=[])
    assert alignment_of(result).exit_code == flags.EXIT_INCONCLUSIVE
    fused = verdict.Judgement(toy.RUN.key(0, 0, SITE), verdict.Status.FUSED, "")
    only_fused = [compare.SiteVerdict(0, SITE, (fused,))]
    assert alignment_of(replace(result, verdicts=only_fused)).exit_code == flags.EXIT_INCONCLUSIVE
