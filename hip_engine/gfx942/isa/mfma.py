"""Dense matrix instructions (MFMA): operands to the runtime's bit-faithful arithmetic (mfma.h).

EXEC and MODE do not matter to them. Sparse forms (SMFMAC) are refused by name.
"""

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.isa.lanes import row_index
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.wave import Wave, constant_bits

_SIXTEEN = ("32x32x4_2b", "16x16x4_4b", "4x4x4_16b", "32x32x8", "16x16x16")
_EIGHT = ("16x16x32", "32x32x16")
SHAPES = (
    *(f"f32_{shape}_{ty}" for ty in ("f16", "bf16") for shape in _SIXTEEN),
    *("f32_16x16x8_xf32", "f32_32x32x4_xf32"),
    *(f"f32_{shape}_{a}_{b}" for a in ("fp8", "bf8") for b in ("fp8", "bf8") for shape in _EIGHT),
    *("f32_32x32x1_2b_f32", "f32_16x16x1_4b_f32", "f32_4x4x1_16b_f32"),
    *("f32_32x32x2_f32", "f32_16x16x4_f32"),
    *("i32_32x32x4_2b_i8", "i32_16x16x4_4b_i8", "i32_4x4x4_16b_i8"),
    *("i32_32x32x16_i8", "i32_16x16x32_i8"),
    *("f64_16x16x4_f64", "f64_4x4x4_4b_f64"),
)


def _mfma(shape: str):
    def emit(w: Wave, inst: Instruction) -> None:
        dst, a, b, c = inst.operands
        constant = 0
        row = w.const("i32", -1)
        if c.is_register:
            row = row_index(w, c, "whole")
        else:
            constant = constant_bits(c, "double" if shape.startswith("f64") else "float")
        if inst.flag("clamp"):
            raise w.unsupported("clamp on a matrix instruction")
        control = inst.number("cbsz") | inst.number("abid") << 4 | _b_control(inst) << 8
        w.runtime(
            f"mfma_{shape}",
            row_index(w, dst, "whole_write"),
            *(row_index(w, o, "whole") for o in (a, b)),
            row,
            w.const("i64", constant),
            w.const("i32", control),
        )

    return emit


def _b_control(inst: Instruction) -> int:
    """BLGP; the f64 forms use its bits to negate A, B and C, which LLVM prints as neg."""
    if "neg" in inst.modifiers:
        return sum(bit << i for i, bit in enumerate(inst.bits("neg", (0, 0, 0))))
    return inst.number("blgp")


for _shape in SHAPES:
    opcode(f"v_mfma_{_shape}")(_mfma(_shape))
