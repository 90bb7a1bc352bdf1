"""SOP1 and selects: scalar moves, bit counts, EXEC updates and clocks."""

from hip_engine.gfx942 import layout
from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import Value, width
from hip_engine.gfx942.isa.scalar import inverted, nonzero, plain, scc_nonzero, second_inverted
from hip_engine.gfx942.isa.table import define, opcode
from hip_engine.gfx942.wave import EXEC, Wave


def _unary(ty: str, function, scc=None, result: str | None = None):
    def emit(w: Wave, inst: Instruction) -> None:
        x = w.scalar(inst.operands[1], ty)
        value = function(w, x)
        assert value.ty == (result or ty)
        bit = scc(w, x, x, value) if scc else None
        w.set_sgpr(inst.operands[0].index, value)
        if bit is not None:
            w.set_scc(bit)

    return emit


def _find(name: str, ones: bool):
    """Index of the first 1 (or 0), or -1; a 32-bit result."""

    def emit(w: Wave, x: Value) -> Value:
        bits = x if ones else w.invert(x)
        found = w.intrinsic(name, bits, w.const("i1", 0))
        found = w.cast("trunc", found, "i32") if found.ty == "i64" else found
        return w.select(nonzero(w, bits), found, w.const("i32", -1))

    return emit


def _first_differing(w: Wave, x: Value) -> Value:
    """s_flbit_i32: leading bits equal to the sign, or -1 if all are."""
    folded = w.op("xor", x, w.op("ashr", x, w.const(x.ty, width(x.ty) - 1)))
    return _find("ctlz", True)(w, folded)


def _count(ones: bool):
    def emit(w: Wave, x: Value) -> Value:
        n = w.intrinsic("ctpop", x if ones else w.invert(x))
        return w.cast("trunc", n, "i32") if n.ty == "i64" else n

    return emit


def _quad_mask(w: Wave, x: Value) -> Value:
    """s_wqm: a quad is all ones if any of its bits is."""
    any_bit = x
    for n in (1, 2, 3):
        any_bit = w.op("or", any_bit, w.op("lshr", x, w.const(x.ty, n)))
    low = w.op("and", any_bit, w.const(x.ty, 0x1111111111111111))
    return w.op("mul", low, w.const(x.ty, 15))


for _bits in (32, 64):
    _ty = f"i{_bits}"
    define(
        (
            (f"s_mov_b{_bits}", _unary(_ty, lambda w, x: x)),
            (f"s_not_b{_bits}", _unary(_ty, lambda w, x: w.invert(x), scc_nonzero)),
            (f"s_wqm_b{_bits}", _unary(_ty, _quad_mask, scc_nonzero)),
            (f"s_brev_b{_bits}", _unary(_ty, lambda w, x: w.intrinsic("bitreverse", x))),
            (f"s_bcnt0_i32_b{_bits}", _unary(_ty, _count(False), scc_nonzero, "i32")),
            (f"s_bcnt1_i32_b{_bits}", _unary(_ty, _count(True), scc_nonzero, "i32")),
            (f"s_ff0_i32_b{_bits}", _unary(_ty, _find("cttz", False), None, "i32")),
            (f"s_ff1_i32_b{_bits}", _unary(_ty, _find("cttz", True), None, "i32")),
            (f"s_flbit_i32_b{_bits}", _unary(_ty, _find("ctlz", True), None, "i32")),
        )
    )
define(
    (
        ("s_flbit_i32", _unary("i32", _first_differing)),
        ("s_flbit_i32_i64", _unary("i64", _first_differing, None, "i32")),
        (
            "s_abs_i32",
            _unary("i32", lambda w, x: w.intrinsic("abs", x, w.const("i1", 0)), scc_nonzero),
        ),
        (
            "s_sext_i32_i8",
            _unary("i32", lambda w, x: w.cast("sext", w.cast("trunc", x, "i8"), "i32")),
        ),
        (
            "s_sext_i32_i16",
            _unary("i32", lambda w, x: w.cast("sext", w.cast("trunc", x, "i16"), "i32")),
        ),
    )
)


def _conditional_move(ty: str):
    def emit(w: Wave, inst: Instruction) -> None:
        old = w.sgpr(inst.operands[0].index, width(ty))
        w.set_sgpr(inst.operands[0].index, w.select(w.scc, w.scalar(inst.operands[1], ty), old))

    return emit


def _select(ty: str):
    def emit(w: Wave, inst: Instruction) -> None:
        x, y = (w.scalar(o, ty) for o in inst.operands[1:3])
        w.set_sgpr(inst.operands[0].index, w.select(w.scc, x, y))

    return emit


def _bit_set(ty: str, on: bool):
    """s_bitset: read-modify-write of one bit of the destination."""

    def emit(w: Wave, inst: Instruction) -> None:
        n = w.op("and", w.scalar(inst.operands[1]), w.const("i32", width(ty) - 1))
        bit = w.op("shl", w.const(ty, 1), w.cast("zext", n, ty))
        old = w.sgpr(inst.operands[0].index, width(ty))
        new = w.op("or", old, bit) if on else w.op("and", old, w.invert(bit))
        w.set_sgpr(inst.operands[0].index, new)

    return emit


for _bits in (32, 64):
    opcode(f"s_cmov_b{_bits}")(_conditional_move(f"i{_bits}"))
    opcode(f"s_cselect_b{_bits}")(_select(f"i{_bits}"))
    opcode(f"s_bitset0_b{_bits}")(_bit_set(f"i{_bits}", False))
    opcode(f"s_bitset1_b{_bits}")(_bit_set(f"i{_bits}", True))


def _save_exec(function):
    """dst = EXEC; EXEC = function(src, EXEC); SCC = EXEC != 0."""

    def emit(w: Wave, inst: Instruction) -> None:
        source, old = w.scalar(inst.operands[1], "i64"), w.sgpr(EXEC, 64)
        new = function(w, source, old)
        w.set_sgpr(inst.operands[0].index, old)
        w.set_sgpr(EXEC, new)
        w.set_scc(nonzero(w, new))

    return emit


def _write_exec(function):
    """EXEC and dst = function(src, EXEC); SCC = EXEC != 0."""

    def emit(w: Wave, inst: Instruction) -> None:
        new = function(w, w.scalar(inst.operands[1], "i64"), w.sgpr(EXEC, 64))
        w.set_sgpr(EXEC, new)
        w.set_sgpr(inst.operands[0].index, new)
        w.set_scc(nonzero(w, new))

    return emit


def second_only(w, x, y):
    return w.op("and", w.invert(x), y)


define(
    (
        ("s_and_saveexec_b64", _save_exec(plain("and"))),
        ("s_or_saveexec_b64", _save_exec(plain("or"))),
        ("s_xor_saveexec_b64", _save_exec(plain("xor"))),
        ("s_nand_saveexec_b64", _save_exec(inverted("and"))),
        ("s_nor_saveexec_b64", _save_exec(inverted("or"))),
        ("s_xnor_saveexec_b64", _save_exec(inverted("xor"))),
        ("s_andn2_saveexec_b64", _save_exec(second_inverted("and"))),
        ("s_orn2_saveexec_b64", _save_exec(second_inverted("or"))),
        ("s_andn1_saveexec_b64", _save_exec(second_only)),
        ("s_orn1_saveexec_b64", _save_exec(lambda w, x, y: w.op("or", w.invert(x), y))),
        ("s_andn1_wrexec_b64", _write_exec(second_only)),
        ("s_andn2_wrexec_b64", _write_exec(second_inverted("and"))),
    )
)


# Less common SOP1.


def _any_of_quad(w: Wave, x: Value) -> Value:
    """s_quadmask: one bit a quad, set if any of its bits is; gathered downward."""
    out = w.const(x.ty, 0)
    for quad in range(width(x.ty) // 4):
        part = w.op("and", w.op("lshr", x, w.const(x.ty, 4 * quad)), w.const(x.ty, 15))
        bit = w.cast("zext", nonzero(w, part), x.ty)
        out = w.op("or", out, w.op("shl", bit, w.const(x.ty, quad)))
    return out


for _bits in (32, 64):
    opcode(f"s_quadmask_b{_bits}")(_unary(f"i{_bits}", _any_of_quad, scc_nonzero))


@opcode("s_bitreplicate_b64_b32")
def _bitreplicate(w: Wave, inst: Instruction) -> None:
    """Every bit twice."""
    x = w.cast("zext", w.scalar(inst.operands[1]), "i64")
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        spread = w.op("or", x, w.op("shl", x, w.const("i64", shift)))
        x = w.op("and", spread, w.const("i64", mask))
    w.set_sgpr(inst.operands[0].index, w.op("mul", x, w.const("i64", 3)))


@opcode("s_memtime", "s_memrealtime")
def _clock(w: Wave, inst: Instruction) -> None:
    """Clocks count the instructions this wave has executed: the same in every run."""
    left = w.load("i64", w.pointer("%w", layout.BUDGET), 8)
    w.set_sgpr(inst.operands[0].index, w.op("sub", w.const("i64", 1 << 40), left))
