"""SOP2: scalar ALU with two sources on SGPRs and SCC."""

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import Value, width
from hip_engine.gfx942.isa.table import define, opcode
from hip_engine.gfx942.wave import Wave


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
