"""The opcode table: mnemonic (without encoding suffix) -> emitter of one instruction."""

from collections.abc import Callable, Iterable

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.wave import Wave

Emitter = Callable[[Wave, Instruction], None]

OPCODES: dict[str, Emitter] = {}


def opcode(*names: str) -> Callable[[Emitter], Emitter]:
    """Register the decorated emitter under each mnemonic."""

    def register(emitter: Emitter) -> Emitter:
        for name in names:
            assert name not in OPCODES, f"{name} is defined twice"
            OPCODES[name] = emitter
        return emitter

    return register


def define(rows: Iterable[tuple[str, Emitter]]) -> None:
    for name, emitter in rows:
        opcode(name)(emitter)


# Counter classes by mnemonic prefix, first match wins.
CLASSES = (
    ("v_mfma", "mfma"),
    ("v_smfmac", "mfma"),
    ("v_accvgpr", "valu"),
    ("v_", "valu"),
    ("s_load", "smem"),
    ("s_buffer", "smem"),
    ("s_store", "smem"),
    ("s_atomic", "smem"),
    ("s_dcache", "smem"),
    ("s_branch", "branch"),
    ("s_cbranch", "branch"),
    ("s_setpc", "branch"),
    ("s_swappc", "branch"),
    ("s_call", "branch"),
    ("s_waitcnt", "wait"),
    ("s_nop", "wait"),
    ("s_sleep", "wait"),
    ("s_barrier", "barrier"),
    ("s_", "salu"),
    ("ds_", "lds"),
)


def instruction_class(mnemonic: str) -> str:
    """valu, mfma, salu, smem, branch, wait, barrier, lds, vmem_load, vmem_store or vmem_atomic."""
    for prefix, name in CLASSES:
        if mnemonic.startswith(prefix):
            return name
    for word in ("load", "store", "atomic"):
        if f"_{word}" in mnemonic:
            return f"vmem_{word}"
    return "other"
