"""VOP1, VOP2 and VOP3 on integers: arithmetic, logic, shifts, bit fields, packed 16-bit."""

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import V, Value, width
from hip_engine.gfx942.isa.operands import pure, result, source
from hip_engine.gfx942.isa.table import define, opcode
from hip_engine.gfx942.wave import VCC, Wave


def shift_amount(w: Wave, count: Value, ty: str) -> Value:
    """Shift counts use the low log2(width) bits."""
    count = w.op("and", count, w.const(count.ty, width(ty) - 1))
    if width(count.ty) < width(ty):
        return w.cast("zext", count, ty)
    return w.cast("trunc", count, ty) if width(count.ty) > width(ty) else count


def shl(w, x, n):
    return w.op("shl", x, shift_amount(w, n, x.ty))


def lshr(w, x, n):
    return w.op("lshr", x, shift_amount(w, n, x.ty))


def ashr(w, x, n):
    return w.op("ashr", x, shift_amount(w, n, x.ty))


def add(w, x, y):
    return w.op("add", x, y)


def sub(w, x, y):
    return w.op("sub", x, y)


def mul(w, x, y):
    return w.op("mul", x, y)


def bit_and(w, x, y):
    return w.op("and", x, y)


def bit_or(w, x, y):
    return w.op("or", x, y)


def xor(w, x, y):
    return w.op("xor", x, y)


def smin(w, x, y):
    return w.intrinsic("smin", x, y)


def smax(w, x, y):
    return w.intrinsic("smax", x, y)


def umin(w, x, y):
    return w.intrinsic("umin", x, y)


def umax(w, x, y):
    return w.intrinsic("umax", x, y)


def low24(w, x, kind):
    """Bits 23:0, zero- or sign-extended."""
    up = w.op("shl", x, w.const(x.ty, 8))
    return w.op("ashr" if kind == "sext" else "lshr", up, w.const(x.ty, 8))


def mul24(kind):
    return lambda w, x, y: w.op("mul", low24(w, x, kind), low24(w, y, kind))


def mul_high(kind, narrow=lambda w, x: x):
    def emit(w, x, y):
        x, y = (w.cast(kind, narrow(w, v), V("i64")) for v in (x, y))
        product = w.op("lshr", w.op("mul", x, y), w.const(V("i64"), 32))
        return w.cast("trunc", product, V("i32"))

    return emit


def bfe(shift):
    """Bit field of width src2[4:0] at src1[4:0]; width 0 gives 0."""

    def emit(w, x, offset, bits):
        n = shift_amount(w, bits, x.ty)
        down = w.op("lshr" if shift == "lshr" else "ashr", x, shift_amount(w, offset, x.ty))
        up = w.op("and", w.op("sub", w.const(x.ty, 32), n), w.const(x.ty, 31))
        field = w.op(shift, w.op("shl", down, up), up)
        return w.select(w.icmp("eq", n, w.const(x.ty, 0)), w.const(x.ty, 0), field)

    return emit


def low3(w, n):
    return w.op("and", n, w.const(n.ty, 7))


def bfm(w, bits, offset):
    ones = w.op("shl", w.const(bits.ty, 1), shift_amount(w, bits, bits.ty))
    return shl(w, w.op("sub", ones, w.const(bits.ty, 1)), offset)


def bfi(w, mask, x, y):
    return bit_or(w, bit_and(w, mask, x), bit_and(w, w.invert(mask), y))


def align(unit):
    """({x, y} >> unit*n) low dword."""

    def emit(w, x, y, n):
        n = w.op("and", n, w.const(n.ty, 31 if unit == 1 else 3))
        n = w.cast("zext", w.op("mul", n, w.const(n.ty, unit)), V("i64"))
        return w.cast("trunc", w.op("lshr", w.pair(y, x), n), V("i32"))

    return emit


def perm(w, x, y, selector):
    """v_perm_b32: each selector byte picks a byte of {x, y}, a sign, 0x00 or 0xff."""
    data = w.pair(y, x)
    out = w.const(V("i32"), 0)
    for byte in range(4):
        pick = w.op(
            "and", w.op("lshr", selector, w.const(V("i32"), 8 * byte)), w.const(V("i32"), 255)
        )
        wide = w.cast("zext", pick, V("i64"))
        eight = w.const(V("i64"), 8)
        taken = w.op("lshr", data, w.op("mul", w.op("and", wide, w.const(V("i64"), 7)), eight))
        value = w.cast("trunc", w.op("and", taken, w.const(V("i64"), 255)), V("i32"))
        for code, bit in ((8, 15), (9, 31), (10, 47), (11, 63)):
            up = w.op("shl", data, w.const(V("i64"), 63 - bit))
            sign = w.cast("trunc", w.op("ashr", up, w.const(V("i64"), 63)), V("i32"))
            sign = w.op("and", sign, w.const(V("i32"), 255))
            value = w.select(w.icmp("eq", pick, w.const(V("i32"), code)), sign, value)
        zero = w.icmp("eq", pick, w.const(V("i32"), 12))
        value = w.select(zero, w.const(V("i32"), 0), value)
        ones = w.icmp("ugt", pick, w.const(V("i32"), 12))
        value = w.select(ones, w.const(V("i32"), 255), value)
        out = w.op("or", out, w.op("shl", value, w.const(V("i32"), 8 * byte)))
    return out


def find_first(intrinsic, skip_sign=False):
    """Index of the first set bit, or -1 if there is none."""

    def emit(w, x):
        bits = x
        if skip_sign:
            bits = xor(w, x, w.op("ashr", x, w.const(x.ty, 31)))
        found = w.intrinsic(intrinsic, bits, w.const("i1", 0))
        none = w.icmp("eq", bits, w.const(x.ty, 0))
        return w.select(none, w.const(x.ty, -1), found)

    return emit


def med3(low, high):
    return lambda w, x, y, z: low(w, high(w, x, y), high(w, low(w, x, y), z))


def sad_u8(w, x, y, z):
    total = z
    for byte in range(4):
        parts = []
        for v in (x, y):
            down = w.op("lshr", v, w.const(v.ty, 8 * byte))
            parts.append(w.op("and", down, w.const(v.ty, 255)))
        total = add(w, total, w.intrinsic("abs", sub(w, *parts), w.const("i1", 0)))
    return total


def saturating(name):
    return lambda w, x, y: w.intrinsic(name, x, y)


def mbcnt(half):
    """Count the mask bits below this lane; the low and high halves of the wave in turn."""

    def emit(w, mask, base):
        below = [(1 << max(0, min(32, i - half))) - 1 for i in range(64)]
        text = ", ".join(f"i32 {b}" for b in below)
        lower = w.op("and", mask, Value(f"<{text}>", V("i32")))
        return add(w, w.intrinsic("ctpop", lower), base)

    return emit


def mad_wide(kind):
    """16-bit factors, 32-bit sum."""

    def emit(w, x, y, z):
        x, y = (w.cast(kind, v, V("i32")) for v in (x, y))
        return add(w, mul(w, x, y), z)

    return emit


I32_2, I32_3 = "i32 i32 i32", "i32 i32 i32 i32"
define(
    (
        ("v_mov_b32", pure("i32 i32", lambda w, x: x)),
        ("v_mov_b64", pure("i64 i64", lambda w, x: x)),
        ("v_not_b32", pure("i32 i32", lambda w, x: w.invert(x))),
        ("v_bfrev_b32", pure("i32 i32", lambda w, x: w.intrinsic("bitreverse", x))),
        ("v_ffbh_u32", pure("i32 i32", find_first("ctlz"))),
        ("v_ffbh_i32", pure("i32 i32", find_first("ctlz", skip_sign=True))),
        ("v_ffbl_b32", pure("i32 i32", find_first("cttz"))),
        ("v_add_u32", pure(I32_2, add, clamp=saturating("uadd.sat"))),
        ("v_add_i32", pure(I32_2, add, clamp=saturating("sadd.sat"))),
        ("v_sub_u32", pure(I32_2, sub, clamp=saturating("usub.sat"))),
        ("v_sub_i32", pure(I32_2, sub, clamp=saturating("ssub.sat"))),
        ("v_subrev_u32", pure(I32_2, lambda w, x, y: sub(w, y, x))),
        ("v_and_b32", pure(I32_2, bit_and)),
        ("v_or_b32", pure(I32_2, bit_or)),
        ("v_xor_b32", pure(I32_2, xor)),
        ("v_xnor_b32", pure(I32_2, lambda w, x, y: w.invert(xor(w, x, y)))),
        ("v_lshlrev_b32", pure(I32_2, lambda w, n, x: shl(w, x, n))),
        ("v_lshrrev_b32", pure(I32_2, lambda w, n, x: lshr(w, x, n))),
        ("v_ashrrev_i32", pure(I32_2, lambda w, n, x: ashr(w, x, n))),
        ("v_lshlrev_b64", pure("i64 i32 i64", lambda w, n, x: shl(w, x, n))),
        ("v_lshrrev_b64", pure("i64 i32 i64", lambda w, n, x: lshr(w, x, n))),
        ("v_ashrrev_i64", pure("i64 i32 i64", lambda w, n, x: ashr(w, x, n))),
        ("v_min_i32", pure(I32_2, smin)),
        ("v_max_i32", pure(I32_2, smax)),
        ("v_min_u32", pure(I32_2, umin)),
        ("v_max_u32", pure(I32_2, umax)),
        ("v_mul_lo_u32", pure(I32_2, mul)),
        ("v_mul_hi_u32", pure(I32_2, mul_high("zext"))),
        ("v_mul_hi_i32", pure(I32_2, mul_high("sext"))),
        ("v_mul_u32_u24", pure(I32_2, mul24("zext"))),
        ("v_mul_i32_i24", pure(I32_2, mul24("sext"))),
        ("v_mul_hi_u32_u24", pure(I32_2, mul_high("zext", lambda w, x: low24(w, x, "zext")))),
        ("v_mul_hi_i32_i24", pure(I32_2, mul_high("sext", lambda w, x: low24(w, x, "sext")))),
        ("v_mad_u32_u24", pure(I32_3, lambda w, x, y, z: add(w, mul24("zext")(w, x, y), z))),
        ("v_mad_i32_i24", pure(I32_3, lambda w, x, y, z: add(w, mul24("sext")(w, x, y), z))),
        ("v_add3_u32", pure(I32_3, lambda w, x, y, z: add(w, add(w, x, y), z))),
        ("v_lshl_add_u32", pure(I32_3, lambda w, x, n, y: add(w, shl(w, x, n), y))),
        ("v_add_lshl_u32", pure(I32_3, lambda w, x, y, n: shl(w, add(w, x, y), n))),
        ("v_lshl_or_b32", pure(I32_3, lambda w, x, n, y: bit_or(w, shl(w, x, n), y))),
        ("v_and_or_b32", pure(I32_3, lambda w, x, y, z: bit_or(w, bit_and(w, x, y), z))),
        ("v_or3_b32", pure(I32_3, lambda w, x, y, z: bit_or(w, bit_or(w, x, y), z))),
        ("v_xad_u32", pure(I32_3, lambda w, x, y, z: add(w, xor(w, x, y), z))),
        (
            "v_lshl_add_u64",
            pure("i64 i64 i32 i64", lambda w, x, n, y: add(w, shl(w, x, low3(w, n)), y)),
        ),
        ("v_bfe_u32", pure(I32_3, bfe("lshr"))),
        ("v_bfe_i32", pure(I32_3, bfe("ashr"))),
        ("v_bfi_b32", pure(I32_3, bfi)),
        ("v_bfm_b32", pure(I32_2, bfm)),
        ("v_alignbit_b32", pure(I32_3, align(1))),
        ("v_alignbyte_b32", pure(I32_3, align(8))),
        ("v_perm_b32", pure(I32_3, perm)),
        ("v_bcnt_u32_b32", pure(I32_2, lambda w, x, y: add(w, w.intrinsic("ctpop", x), y))),
        ("v_mbcnt_lo_u32_b32", pure(I32_2, mbcnt(0))),
        ("v_mbcnt_hi_u32_b32", pure(I32_2, mbcnt(32))),
        ("v_sad_u8", pure(I32_3, sad_u8)),
        ("v_min3_i32", pure(I32_3, lambda w, x, y, z: smin(w, smin(w, x, y), z))),
        ("v_max3_i32", pure(I32_3, lambda w, x, y, z: smax(w, smax(w, x, y), z))),
        ("v_min3_u32", pure(I32_3, lambda w, x, y, z: umin(w, umin(w, x, y), z))),
        ("v_max3_u32", pure(I32_3, lambda w, x, y, z: umax(w, umax(w, x, y), z))),
        ("v_med3_i32", pure(I32_3, med3(smax, smin))),
        ("v_med3_u32", pure(I32_3, med3(umax, umin))),
    )
)

# 16-bit integers, single and packed.
I16_2, I16_3 = "i16 i16 i16", "i16 i16 i16 i16"
define(
    (
        ("v_add_u16", pure(I16_2, add, clamp=saturating("uadd.sat"))),
        ("v_sub_u16", pure(I16_2, sub, clamp=saturating("usub.sat"))),
        ("v_subrev_u16", pure(I16_2, lambda w, x, y: sub(w, y, x))),
        ("v_add_i16", pure(I16_2, add, clamp=saturating("sadd.sat"))),
        ("v_sub_i16", pure(I16_2, sub, clamp=saturating("ssub.sat"))),
        ("v_mul_lo_u16", pure(I16_2, mul)),
        ("v_mad_u16", pure(I16_3, lambda w, x, y, z: add(w, mul(w, x, y), z))),
        ("v_mad_i16", pure(I16_3, lambda w, x, y, z: add(w, mul(w, x, y), z))),
        ("v_mad_legacy_u16", pure(I16_3, lambda w, x, y, z: add(w, mul(w, x, y), z))),
        ("v_min_i16", pure(I16_2, smin)),
        ("v_max_i16", pure(I16_2, smax)),
        ("v_min_u16", pure(I16_2, umin)),
        ("v_max_u16", pure(I16_2, umax)),
        ("v_min3_i16", pure(I16_3, lambda w, x, y, z: smin(w, smin(w, x, y), z))),
        ("v_max3_i16", pure(I16_3, lambda w, x, y, z: smax(w, smax(w, x, y), z))),
        ("v_min3_u16", pure(I16_3, lambda w, x, y, z: umin(w, umin(w, x, y), z))),
        ("v_max3_u16", pure(I16_3, lambda w, x, y, z: umax(w, umax(w, x, y), z))),
        ("v_med3_i16", pure(I16_3, med3(smax, smin))),
        ("v_med3_u16", pure(I16_3, med3(umax, umin))),
        ("v_mad_legacy_i16", pure(I16_3, lambda w, x, y, z: add(w, mul(w, x, y), z))),
        ("v_mad_u32_u16", pure("i32 i16 i16 i32", mad_wide("zext"))),
        ("v_mad_i32_i16", pure("i32 i16 i16 i32", mad_wide("sext"))),
        ("v_lshlrev_b16", pure(I16_2, lambda w, n, x: shl(w, x, n))),
        ("v_lshrrev_b16", pure(I16_2, lambda w, n, x: lshr(w, x, n))),
        ("v_ashrrev_i16", pure(I16_2, lambda w, n, x: ashr(w, x, n))),
    )
)


@opcode("v_cndmask_b32")
def _cndmask(w: Wave, inst: Instruction) -> None:
    """Lane by lane, src1 where the mask bit is set, else src0."""
    ty = "float" if any(o.negate or o.absolute for o in inst.operands[1:3]) else "i32"
    x, y = source(w, inst, 1, ty, 0), source(w, inst, 2, ty, 1)
    bits = w.mask(inst.operands[3]) if len(inst.operands) > 3 else None
    bits = bits or w.cast("bitcast", w.sgpr(VCC, 64), V("i1"))
    result(w, inst, w.select(bits, y, x), 2)


@opcode("v_nop", "v_clrexcp")
def _nothing(w: Wave, inst: Instruction) -> None:
    """No architectural effect."""


@opcode("v_swap_b32")
def _swap(w: Wave, inst: Instruction) -> None:
    x, y = (w.vgpr(o) for o in inst.operands)
    w.set_vgpr(inst.operands[0], y)
    w.set_vgpr(inst.operands[1], x)
