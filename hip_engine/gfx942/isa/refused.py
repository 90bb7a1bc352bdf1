"""Opcodes that LLVM knows for gfx942 and that are refused here, each with the reason."""

import fnmatch

REFUSED = (  # pattern, reason; first match wins
    ("v_smfmac_*", "sparse matrix instructions (SMFMAC) are refused"),
    ("ds_gws_*", "the global wave sync needs the waves of every workgroup at once"),
    ("s_scratch_*", "the address of a scalar access to scratch is not stated in the ISA manual"),
    ("s_cbranch_?_fork", "the fork and join stack, which no compiler of this chip uses"),
    ("s_cbranch_join", "the fork and join stack, which no compiler of this chip uses"),
    ("s_rfe_*", "return from a trap handler, and there is none"),
    ("s_sendmsghalt", "halts the wave until a debugger resumes it"),
    ("s_setvskip", "skips vector instructions by a hidden state, which no compiler uses"),
    ("s_dcache_discard*", "drops written data, so that what memory holds is not defined"),
    ("s_setkill", "graphics only (ends a wave of pixels)"),
    ("s_endpgm_ordered_ps_done", "graphics only (ordered pixel shaders)"),
    ("v_screen_partition_4se_b32", "graphics only (the partition of the screen)"),
)


def refusal(mnemonic: str) -> str | None:
    """Why an opcode is refused, or None if it is not one of those."""
    return next((why for pattern, why in REFUSED if fnmatch.fnmatch(mnemonic, pattern)), None)
