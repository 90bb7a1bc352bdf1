"""The corpus of faults: each one still applies, and injecting it leaves nothing behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hip_engine.engine
from experiments import flags, inject
from experiments.align import faults, sites
from experiments.align.errors import FaultNotApplicable, UnknownFault
from greta_jax import ops
from greta_jax.hypotheses import FALLBACKS, HYPOTHESES
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from hip_engine.routes import Route
from hip_engine.taps import Taps, sites_of

R7 = faults.FAULTS["kv_base_of_layer_0"]


CHANGED = [
    (fault.name, patch) for fault in (*faults.CORPUS, *faults.DECOYS) for patch in fault.patches
]


@pytest.mark.parametrize("name, patch", CHANGED, ids=[f"{n}-{p.file}" for n, p in CHANGED])
def test_a_patch_changes_exactly_one_place_of_todays_sources(name, patch):
    path = f"kernels/{patch.file}" if patch.is_kernel else f"{patch.file.replace('.', '/')}.py"
    assert (flags.ROOT / path).read_text().count(patch.old) == 1, name
    assert patch.new != patch.old


def test_a_fault_says_where_it_is_found_or_what_is_said_and_a_decoy_neither():
    for fault in faults.CORPUS:
        assert bool(fault.says) != (fault.found_at[1] in sites.SITES), fault.name
        assert not fault.is_decoy
    assert all(decoy.is_decoy and not decoy.named for decoy in faults.DECOYS)


def test_a_fault_is_named_as_a_hypothesis_of_its_site_or_says_why_not():
    for fault in faults.CORPUS:
        assert bool(fault.named) + bool(fault.unnamed) + bool(fault.says) == 1, fault.name
        known = HYPOTHESES.get(fault.found_at[1], {}) | FALLBACKS
        assert not fault.named or fault.named in known, fault.name


def test_the_corpus_is_as_large_as_it_says_and_lives_everywhere():
    assert len(faults.CORPUS) >= 60 and len(faults.DECOYS) >= 15
    places = {patch.lives_in for fault in faults.CORPUS for patch in fault.patches}
    assert places == {"kernels", "engine", "oracle", "harness"}


GRETA = {
    **{"R2": "embed", "R3": "logits", "R4": "attn.q", "R5": "attn.out", "R7": "attn.out"},
    **{"R9": "attn.q", "R16": "kv.k", "L2": "embed", "L3": "attn.v", "L4": "attn.k"},
    **{"L5": "attn.q", "L6": "attn.q_rope", "L13": "attn.out", "G1": "attn.out"},
    **{"G2": "attn.q_rope", "G3": "attn.out"},
    **{"R6": "kv_append", "R8": "attention weights", "R13": "the configuration says"},
    **{"R15": "the device decodes", "L1": "token ids", "L9": "what runs is not what was judged"},
    "G4": "the same buffer on both sides",
}
"""Every row of what went wrong in GRETA: the site at which it must be found, or the words."""
KNOWN = {
    "RoPE twice": "rotated_twice",
    "RoPE skipped": "rope_skipped",
    "softmax scale missing": "softmax_scale_missing",
    "softmax scale 1/H": "softmax_scale_1_over_h",
    "maximum not subtracted": "maximum_not_subtracted",
    "row sum in the wrong 16-bit type": "row_sum_in_the_wrong_16_bit_type",
    "MFMA C/D row map": "rows_of_mfma_result_permuted",
    "split merge without rescale": "splits_merged_without_rescale",
    "empty split": "empty_split_counted",
    "last split dropped": "last_split_dropped",
    "stale page": "block_table_stale",
    "one page shifted": "read_one_page_early",
    "V tail unmasked": "tail_unmasked",
    "K and V swapped": "k_and_v_read_for_each_other",
    "heads transposed before the output projection": "heads_transposed_before_the_projection",
    "gate and up swapped": "gate_and_up_swapped",
    "residual missing": "residual_missing",
    "residual doubled": "residual_doubled",
    "norm weight wrong": "norm_weight_missing",
    "norm epsilon wrong": "norm_epsilon_of_another_model",
    "mean instead of mean square": "mean_in_place_of_mean_square",
    "Q4_K min sign": "q4_k_minima_added",
    "fp8 FN read as FNUZ": "fp8_read_as_fn",
    "32-bit offset overflow": "cache_offset_in_32_bits",
    "fp16 score overflow": "scores_overflow_fp16",
    "position not reset between prompts": "position_not_reset_between_prompts",
}


def test_every_fault_of_gretas_record_is_in_the_corpus_and_no_other():
    assert {fault.reference for fault in faults.CORPUS} - {""} == GRETA.keys()


@pytest.mark.parametrize("reference", GRETA)
def test_every_fault_of_gretas_record_must_be_found_where_it_shows(reference):
    alike = [fault for fault in faults.CORPUS if fault.reference == reference]
    where = GRETA[reference]
    assert any(where == fault.found_at[1] or where in fault.says for fault in alike)


@pytest.mark.parametrize("mistake", KNOWN)
def test_every_mistake_that_must_be_known_is_injected_and_has_a_name(mistake):
    fault = faults.FAULTS[KNOWN[mistake]]
    assert fault.named or fault.says


def test_fp16_sums_must_be_found_as_numeric():
    sums, scores = (fault for fault in faults.CORPUS if fault.reference == "G3")
    assert (sums.found_at, sums.status) == ((0, "attn.out"), "above_floor")
    assert scores.found_at == (0, "attn.out")


def test_a_model_with_larger_queries_differs_in_nothing_else(tmp_path):
    large = faults.FAULTS["maximum_not_subtracted"]
    with inject.model_file(large, str(flags.DEFAULT_MODEL)) as path:
        sides = [Oracle.open(p, Policy.fp32()) for p in (flags.DEFAULT_MODEL, path)]
        once, more = (np.asarray(side.weights.load("q_NHD", 0)) for side in sides)
        np.testing.assert_array_equal(more, large.queries * once)
        changed = np.frombuffer(Path(path).read_bytes(), np.uint8) != np.frombuffer(
            flags.DEFAULT_MODEL.read_bytes(), np.uint8
        )
        assert 0 < changed.sum() <= 4 * once.size // 256
    assert not Path(path).exists()
    with inject.model_file(R7, "as.gguf") as same:
        assert same == "as.gguf"


def test_names_of_faults_and_decoys_are_unique():
    assert len(faults.FAULTS) + len(faults.DECOYS_BY_NAME) == len(set(faults.chosen(["all"])))
    assert len(faults.CORPUS) == len(faults.FAULTS)
    assert len(faults.DECOYS) == len(faults.DECOYS_BY_NAME)


def test_the_quick_subset_compiles_nothing_and_holds_a_decoy():
    quick = [faults.find(name) for name in faults.chosen(["quick"])]
    assert {fault.lives_in for fault in quick} == {"engine"}
    assert {fault.is_decoy for fault in quick} == {True, False}


def test_a_fault_is_in_force_inside_and_gone_after():
    method = hip_engine.engine.Engine.kv_layer_offset_bytes
    fake = type("Fake", (), {"_cache": type("C", (), {"layer_offset_bytes": lambda s, i: i})()})
    with inject.host_patch(R7):
        assert method(fake(), 5) == 0
    assert method(fake(), 5) == 5


def test_whoever_holds_a_function_already_runs_the_fault():
    held = ops.keep
    wrong = replace(
        R7,
        patches=faults.patch(
            "greta_jax.ops", "cfg, how\n    return x\n", "cfg, how\n    return -x\n"
        ),
    )
    with inject.host_patch(wrong):
        assert held(None, None, 1) == -1
    assert held(None, None, 1) == 1


def test_two_patches_of_one_module_are_both_in_force():
    both = faults.patch("hip_engine.taps", "return site in self.sites and", "return False and")
    both += faults.patch("hip_engine.taps", "in IN_REGISTERS[route.kernel])", "in ())")
    with inject.host_patch(replace(R7, patches=both)):
        assert not Taps.of(["embed"]).wants(-1, "embed")
        assert "attn.q_rope" in sites_of(Route("fused", "valu"))
    assert Taps.of(["embed"]).wants(-1, "embed")
    assert "attn.q_rope" not in sites_of(Route("fused", "valu"))


def test_a_patch_outside_every_function_is_an_error():
    table = replace(R7, patches=faults.patch("hip_engine.taps", "NO_LAYER = -1", "NO_LAYER = -2"))
    with pytest.raises(FaultNotApplicable, match="changes no function of hip_engine.taps"):
        with inject.host_patch(table):
            raise AssertionError("the body must not run")


def test_a_fault_that_no_longer_applies_is_an_error():
    stale = replace(R7, patches=faults.patch("hip_engine.engine", "no such text", ""))
    with pytest.raises(FaultNotApplicable, match="occurs 0 times in hip_engine.engine"):
        with inject.host_patch(stale):
            raise AssertionError("the body must not run")


def test_kernel_faults_are_source_patches_and_host_faults_are_not():
    dropped = faults.FAULTS["newest_key_dropped"]
    (only,) = dropped.patches
    assert inject.kernel_patches(dropped) == [(only.file, only.old, only.new)]
    assert inject.kernel_patches(R7) == inject.kernel_patches(None) == []


def test_an_unknown_fault_is_refused_with_its_neighbour():
    with pytest.raises(UnknownFault, match="did you mean newest_key_dropped"):
        faults.find("newest_key_drop")
