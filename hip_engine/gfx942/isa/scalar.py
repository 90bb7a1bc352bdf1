"""SOP1, SOP2, SOPC, SOPK and SOPP without control flow: scalar ALU on SGPRs and SCC."""

from hip_engine.gfx942 import layout
from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import Value, width
from hip_engine.gfx942.isa.table import define, opcode
from hip_engine.gfx942.wave import EXEC, Wave


def nonzero(w: Wave, x: Value) -> Value:
    return w.icmp("ne", x, w.const(x.ty, 0))


def _binary(ty: str, function, scc=None, second: str | None = None):
    """dst = function(src0, src1); `scc(w, x, y, result)` gives the new SCC, or None leaves it."""

    def emit(w: Wave, inst: Instruction) -> None:
        dst, *sources = inst.operands
        x = w.scalar(sources[0], ty)
        y = w.scalar(sources[1], second or ty)
        value = function(w, x, y)
        bit = scc(w, x, y, value) if scc else None
        w.set_sgpr(dst.index, value)
        if bit is not None:
            w.set_scc(bit)

    return emit


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


def scc_nonzero(w, x, y, value):
    return nonzero(w, value)


def plain(opcode_name):
    return lambda w, x, y: w.op(opcode_name, x, y)


def shift(opcode_name):
    def emit(w: Wave, x: Value, n: Value) -> Value:
        n = w.op("and", n, w.const(n.ty, width(x.ty) - 1))
        if width(n.ty) < width(x.ty):
            n = w.cast("zext", n, x.ty)
        return w.op(opcode_name, x, n)

    return emit


def carry_out(w, x, y, value):
    return w.icmp("ult", value, x)


def borrow_out(w, x, y, value):
    return w.icmp("ult", x, y)


def overflow(opcode_name):
    """Signed overflow of x + y or x - y."""

    def emit(w, x, y, value):
        a = w.op("xor", x, value)
        b = w.op("xor", y if opcode_name == "add" else x, value if opcode_name == "add" else y)
        return w.icmp("slt", w.op("and", a, b), w.const(x.ty, 0))

    return emit


def _with_carry(opcode_name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        dst, *sources = inst.operands
        x, y = (w.cast("zext", w.scalar(o), "i64") for o in sources)
        bit = w.cast("zext", w.scc, "i64")
        wide = w.op(opcode_name, w.op(opcode_name, x, y), bit)
        w.set_sgpr(dst.index, w.cast("trunc", wide, "i32"))
        w.set_scc(nonzero(w, w.op("lshr", wide, w.const("i64", 32))))

    return emit


def inverted(opcode_name):
    return lambda w, x, y: w.invert(w.op(opcode_name, x, y))


def second_inverted(opcode_name):
    return lambda w, x, y: w.op(opcode_name, x, w.invert(y))


def _mul_high(kind):
    def emit(w, x, y):
        product = w.op("mul", w.cast(kind, x, "i64"), w.cast(kind, y, "i64"))
        return w.cast("trunc", w.op("lshr", product, w.const("i64", 32)), "i32")

    return emit


def _shift_add(n):
    return lambda w, x, y: w.op("add", w.op("shl", x, w.const(x.ty, n)), y)


def _shift_add_carry(n):
    def emit(w, x, y, value):
        wide = w.op("shl", w.cast("zext", x, "i64"), w.const("i64", n))
        wide = w.op("add", wide, w.cast("zext", y, "i64"))
        return nonzero(w, w.op("lshr", wide, w.const("i64", 32)))

    return emit


def _bfe(kind: str):
    """Bit field: offset in src1[4:0] (or [5:0]), width in src1[22:16]."""

    def emit(w: Wave, x: Value, control: Value) -> Value:
        bits = width(x.ty)
        offset = w.op("and", control, w.const("i32", bits - 1))
        size = w.op("and", w.op("lshr", control, w.const("i32", 16)), w.const("i32", 127))
        if bits == 64:
            offset, size = w.cast("zext", offset, "i64"), w.cast("zext", size, "i64")
        room = w.op("sub", w.const(x.ty, bits), offset)
        size = w.intrinsic("umin", size, room)
        up = w.op("and", w.op("sub", room, size), w.const(x.ty, bits - 1))
        down = w.op("and", w.op("sub", w.const(x.ty, bits), size), w.const(x.ty, bits - 1))
        value = w.op("shl", x, up)
        value = w.op("ashr" if kind == "i" else "lshr", value, down)
        return w.select(nonzero(w, size), value, w.const(x.ty, 0))

    return emit


def _bfm(ty):
    def emit(w: Wave, size: Value, offset: Value) -> Value:
        mask = w.const("i32", width(ty) - 1)
        size, offset = w.op("and", size, mask), w.op("and", offset, mask)
        if ty == "i64":
            size, offset = w.cast("zext", size, ty), w.cast("zext", offset, ty)
        ones = w.op("sub", w.op("shl", w.const(ty, 1), size), w.const(ty, 1))
        return w.op("shl", ones, offset)

    return emit


def _pack(low_shift: int, high_shift: int):
    def emit(w, x, y):
        low = w.op("lshr", x, w.const("i32", low_shift))
        low = w.op("and", low, w.const("i32", 0xFFFF))
        high = w.op("lshr", y, w.const("i32", high_shift))
        return w.op("or", low, w.op("shl", high, w.const("i32", 16)))

    return emit


def _chosen_first(name):
    """min and max set SCC when src0 is the result."""
    return lambda w, x, y, value: w.icmp(name, x, y)


define(
    (
        ("s_add_u32", _binary("i32", plain("add"), carry_out)),
        ("s_sub_u32", _binary("i32", plain("sub"), borrow_out)),
        ("s_add_i32", _binary("i32", plain("add"), overflow("add"))),
        ("s_sub_i32", _binary("i32", plain("sub"), overflow("sub"))),
        ("s_addc_u32", _with_carry("add")),
        ("s_subb_u32", _with_carry("sub")),
        (
            "s_min_i32",
            _binary("i32", lambda w, x, y: w.intrinsic("smin", x, y), _chosen_first("slt")),
        ),
        (
            "s_min_u32",
            _binary("i32", lambda w, x, y: w.intrinsic("umin", x, y), _chosen_first("ult")),
        ),
        (
            "s_max_i32",
            _binary("i32", lambda w, x, y: w.intrinsic("smax", x, y), _chosen_first("sgt")),
        ),
        (
            "s_max_u32",
            _binary("i32", lambda w, x, y: w.intrinsic("umax", x, y), _chosen_first("ugt")),
        ),
        ("s_mul_i32", _binary("i32", plain("mul"))),
        ("s_mul_hi_u32", _binary("i32", _mul_high("zext"))),
        ("s_mul_hi_i32", _binary("i32", _mul_high("sext"))),
        ("s_bfe_u32", _binary("i32", _bfe("u"), scc_nonzero)),
        ("s_bfe_i32", _binary("i32", _bfe("i"), scc_nonzero)),
        ("s_bfe_u64", _binary("i64", _bfe("u"), scc_nonzero, "i32")),
        ("s_bfe_i64", _binary("i64", _bfe("i"), scc_nonzero, "i32")),
        ("s_bfm_b32", _binary("i32", _bfm("i32"))),
        ("s_bfm_b64", _binary("i32", _bfm("i64"))),
        ("s_pack_ll_b32_b16", _binary("i32", _pack(0, 0))),
        ("s_pack_lh_b32_b16", _binary("i32", _pack(0, 16))),
        ("s_pack_hh_b32_b16", _binary("i32", _pack(16, 16))),
        (
            "s_absdiff_i32",
            _binary(
                "i32",
                lambda w, x, y: w.intrinsic("abs", w.op("sub", x, y), w.const("i1", 0)),
                scc_nonzero,
            ),
        ),
    )
)
for _n in (1, 2, 3, 4):
    opcode(f"s_lshl{_n}_add_u32")(_binary("i32", _shift_add(_n), _shift_add_carry(_n)))
for _bits in (32, 64):
    _ty = f"i{_bits}"
    for _name, _function in (
        ("and", plain("and")),
        ("or", plain("or")),
        ("xor", plain("xor")),
        ("nand", inverted("and")),
        ("nor", inverted("or")),
        ("xnor", inverted("xor")),
        ("andn2", second_inverted("and")),
        ("orn2", second_inverted("or")),
    ):
        opcode(f"s_{_name}_b{_bits}")(_binary(_ty, _function, scc_nonzero))
    opcode(f"s_lshl_b{_bits}")(_binary(_ty, shift("shl"), scc_nonzero, "i32"))
    opcode(f"s_lshr_b{_bits}")(_binary(_ty, shift("lshr"), scc_nonzero, "i32"))
    opcode(f"s_ashr_i{_bits}")(_binary(_ty, shift("ashr"), scc_nonzero, "i32"))


# SOP1.


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
