"""The corpus of faults: each one still applies, and injecting it leaves nothing behind."""

from dataclasses import replace
from importlib import import_module

import pytest

import hip_engine.engine
from experiments import flags, inject
from experiments.align import faults, sites
from experiments.align.errors import FaultNotApplicable, UnknownFault
from greta_jax.hypotheses import HYPOTHESES

R7 = faults.FAULTS["kv_base_of_layer_0"]


PATCHES = {f.name: f for f in (*faults.CORPUS, *faults.DECOYS) if f.where != faults.OPTIONS}


@pytest.mark.parametrize("name", sorted(PATCHES))
def test_a_fault_changes_exactly_one_place_of_todays_sources(name):
    fault = PATCHES[name]
    if fault.where == faults.KERNEL:
        source = flags.ROOT / "kernels" / fault.file
    else:
        source = flags.ROOT / f"{fault.file.replace('.', '/')}.py"
    assert source.read_text().count(fault.old) == 1
    assert fault.new != fault.old


def test_a_fault_says_where_it_is_found_and_a_decoy_that_it_is_not():
    for fault in faults.CORPUS:
        assert bool(fault.stops) != (fault.found_at[1] in sites.SITES), fault.name
        assert not fault.is_decoy
    assert all(decoy.is_decoy and not decoy.named for decoy in faults.DECOYS)


def test_a_name_that_a_fault_expects_is_that_of_a_hypothesis_of_its_site():
    for fault in faults.CORPUS:
        assert not fault.named or fault.named in HYPOTHESES[fault.found_at[1]], fault.name


def test_names_of_faults_and_decoys_are_unique():
    assert len(faults.FAULTS) + len(faults.DECOYS_BY_NAME) == len(set(faults.chosen(["all"])))
    assert len(faults.CORPUS) == len(faults.FAULTS)
    assert len(faults.DECOYS) == len(faults.DECOYS_BY_NAME)


def test_the_quick_subset_compiles_nothing_and_holds_a_decoy():
    quick = [faults.find(name) for name in faults.chosen(["quick"])]
    assert all(fault.where == faults.HOST for fault in quick)
    assert {fault.is_decoy for fault in quick} == {True, False}


def test_a_host_fault_is_in_force_inside_and_gone_after():
    original = hip_engine.engine.Engine
    before = dict(vars(hip_engine.engine))
    with inject.host_patch(R7):
        patched = import_module("hip_engine.engine").Engine
        assert patched is not original
        fake = type("Fake", (), {"_cache": type("C", (), {"layer_offset_bytes": lambda s, i: i})()})
        assert patched.kv_layer_offset_bytes(fake(), 5) == 0
        assert original.kv_layer_offset_bytes(fake(), 5) == 5
    assert vars(hip_engine.engine) == before


def test_other_modules_see_the_patched_definition():
    from experiments import under_test

    taps = replace(
        R7, file="hip_engine.taps", old="return site in self.sites and", new="return False and"
    )
    original = under_test.Taps
    with inject.host_patch(taps):
        assert hip_engine.engine.Taps is not original
        assert not hip_engine.engine.Taps.of(["embed"]).wants(-1, "embed")
    assert hip_engine.engine.Taps is original


def test_a_fault_that_no_longer_applies_is_an_error():
    stale = replace(R7, old="no such text")
    with pytest.raises(FaultNotApplicable, match="occurs 0 times in hip_engine.engine"):
        with inject.host_patch(stale):
            raise AssertionError("the body must not run")


def test_kernel_faults_are_source_patches_and_host_faults_are_not():
    dropped = faults.FAULTS["newest_key_dropped"]
    assert inject.kernel_patches(dropped) == [(dropped.file, dropped.old, dropped.new)]
    assert inject.kernel_patches(R7) == inject.kernel_patches(None) == []


def test_an_unknown_fault_is_refused_with_its_neighbour():
    with pytest.raises(UnknownFault, match="did you mean newest_key_dropped"):
        faults.find("newest_key_drop")
