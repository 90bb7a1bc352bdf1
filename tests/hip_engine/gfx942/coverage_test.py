"""The lists behind `python -m hip_engine.gfx942 isa` say what the tests really state.

`python -m tests.hip_engine.gfx942.coverage_test` rewrites the list of tested opcodes.
"""

import pytest

from hip_engine.errors import UnsupportedInstruction
from hip_engine.gfx942.coverage import ISA, coverage, implemented, known_to_llvm
from hip_engine.gfx942.isa.mfma import SHAPES
from hip_engine.gfx942.isa.refused import refusal
from hip_engine.gfx942.translate import NEVER_TAKEN
from tests.hip_engine.gfx942 import (
    memory_table,
    objects,
    scalar_memory_test,
    scalar_table,
    transfers_test,
    typed_buffers_test,
    vector_table,
)
from tests.hip_engine.gfx942.moves_test import NO_EFFECT

# Opcodes whose effect another test of this folder states on its own.
ELSEWHERE = {
    "launch_test": "s_load_dword s_load_dwordx2 s_barrier s_endpgm s_getpc_b64 s_swappc_b64 "
    "s_setpc_b64 s_branch s_cbranch_scc0 s_cbranch_scc1 s_cbranch_execz s_cbranch_execnz "
    "s_cbranch_vccz s_cbranch_vccnz",
    "faults_test": "s_trap",
    "division_test": "v_div_scale_f32 v_div_scale_f64 v_div_fmas_f32 v_div_fmas_f64 "
    "v_div_fixup_f32 v_div_fixup_f64",
    "programs_test": "ds_swizzle_b32 v_readlane_b32 v_readfirstlane_b32",
    "vector_table": "v_accvgpr_read_b32 v_accvgpr_mov_b32",
    "narrow_floats_test": "v_cvt_f32_fp8 v_cvt_f32_bf8 v_cvt_pk_f32_fp8 v_cvt_pk_f32_bf8 "
    "v_cvt_pk_fp8_f32 v_cvt_pk_bf8_f32 v_cvt_sr_fp8_f32 v_cvt_sr_bf8_f32 v_dot2_f32_f16 "
    "v_dot2c_f32_f16",
    "moves_test": "s_load_dwordx16 s_buffer_load_dword s_buffer_load_dwordx2 s_buffer_load_dwordx4 "
    "s_buffer_load_dwordx8 s_buffer_load_dwordx16 ds_permute_b32 ds_bpermute_b32 "
    "global_load_lds_dword "
    "s_set_gpr_idx_on s_set_gpr_idx_idx s_set_gpr_idx_off s_set_gpr_idx_mode s_call_b64 s_memtime "
    "s_memrealtime "
    "s_endpgm_saved " + " ".join(text.split()[0] for text in NO_EFFECT),
    "scalar_memory_test": "s_movrels_b32 s_movrels_b64 s_movreld_b32 s_movreld_b64 "
    + " ".join(case[0].split()[0] for case in scalar_memory_test.CASES),
    "transfers_test": "ds_append ds_consume ds_read_addtid_b32 ds_write_addtid_b32 "
    "buffer_store_lds_dword "
    + " ".join(f"{s}_load_lds_{w}" for s in ("global", "scratch") for w in transfers_test.WIDTHS),
    "typed_buffers_test": " ".join(
        f"{prefix}buffer_{what}_format_{half}{names}"
        for prefix in ("", "t")
        for what in ("load", "store")
        for half in ("", "d16_")
        for names in typed_buffers_test.COMPONENTS
    )
    + " buffer_load_format_d16_hi_x buffer_store_format_d16_hi_x",
    "moves_test (branches)": " ".join(NEVER_TAKEN),
    "opcode_bench": "s_load_dwordx4 s_load_dwordx8 v_writelane_b32",
    "mode_test": "s_setreg_b32 s_setreg_imm32_b32 s_getreg_b32",
}


def stated() -> set[str]:
    tables = (vector_table.ROWS, scalar_table.ROWS, scalar_table.CHANGES, memory_table.ROWS)
    names = {row.opcode for table in tables for row in table}
    names |= {f"v_mfma_{shape}" for shape in SHAPES}
    return names | {name for text in ELSEWHERE.values() for name in text.split()}


def test_the_list_of_tested_opcodes_is_what_the_tables_state():
    listed = set((ISA / "tested.txt").read_text().split())
    assert listed == stated() & implemented()


def test_every_stated_opcode_is_implemented():
    assert not stated() - implemented()


def test_coverage_splits_the_opcodes_into_three_lists():
    table = coverage()
    here = set(table.tested) | set(table.untested)
    assert here == implemented() and not here & set(table.missing)
    assert set(table.missing) == known_to_llvm() - implemented()
    assert len(table.tested) > len(table.untested)
    assert implemented() <= known_to_llvm()


def test_every_missing_opcode_has_a_reason_and_no_other_has():
    table = coverage()
    assert not [name for name in table.missing if not refusal(name)]
    assert not [name for name in implemented() if refusal(name)]
    assert sum("SMFMAC" in refusal(name) for name in table.missing) == 14


def test_a_kernel_that_needs_a_refused_opcode_is_told_why(device):
    body = "v_smfmac_f32_16x16x32_f16 v[0:3], v[4:5], v[6:9], v10"
    code = objects.kernels(objects.kernel_text("sparse", body, pointers=0))
    with pytest.raises(UnsupportedInstruction, match="v_smfmac.*SMFMAC.* are refused"):
        device.load(code)["sparse"]


if __name__ == "__main__":
    (ISA / "tested.txt").write_text("\n".join(sorted(stated() & implemented())) + "\n")
