"""The lists behind `python -m hip_engine.gfx942 isa` say what the tests really state.

`python -m tests.hip_engine.gfx942.coverage_test` rewrites the list of tested opcodes.
"""

from hip_engine.gfx942.coverage import ISA, coverage, implemented, known_to_llvm
from hip_engine.gfx942.isa.mfma import SHAPES
from tests.hip_engine.gfx942 import memory_table, scalar_table, vector_table
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
    "s_set_gpr_idx_on s_set_gpr_idx_idx s_set_gpr_idx_off s_call_b64 s_memtime s_memrealtime "
    "s_endpgm_saved " + " ".join(text.split()[0] for text in NO_EFFECT),
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


def test_sparse_matrix_instructions_are_known_and_refused():
    missing = coverage().missing
    assert sum(name.startswith("v_smfmac") for name in missing) == 14


if __name__ == "__main__":
    (ISA / "tested.txt").write_text("\n".join(sorted(stated() & implemented())) + "\n")
