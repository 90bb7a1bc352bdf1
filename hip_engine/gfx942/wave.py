"""The architectural state of a wave as seen by an emitter: typed reads and EXEC-masked writes.

Registers live in memory (see layout.py) and every write goes there at once, so that a fault, a
barrier or a sanitizer finds the exact state; only the EXEC mask is kept in a value, for the length
of a basic block.
"""

import struct

from hip_engine.errors import UnsupportedInstruction
from hip_engine.gfx942 import layout
from hip_engine.gfx942.disassembly import Instruction, Operand
from hip_engine.gfx942.effects import SCC_INDEX, Effects
from hip_engine.gfx942.emit import FLOATS, Emit, V, Value, like, scalar_of, width

EXEC, VCC, M0 = 126, 106, 124
LAST_ROW, LAST_SGPR = 255, 127
SHARED_APERTURE_HI, PRIVATE_APERTURE_HI = 0x00010000, 0x00020000
NAMED_64 = {
    "shared_base": SHARED_APERTURE_HI << 32,
    "shared_limit": (SHARED_APERTURE_HI << 32) | 0xFFFFFFFF,
    "private_base": PRIVATE_APERTURE_HI << 32,
    "private_limit": (PRIVATE_APERTURE_HI << 32) | 0xFFFFFFFF,
}


class Wave(Emit):
    """Emitter with the wave's registers. `inst` and `site` are those of the current instruction."""

    def __init__(self, observed: bool = False):
        super().__init__()
        self.observed = observed
        self.dynamic_mode = False  # the kernel may flush subnormals: MODE is asked at every use
        self.inst: Instruction | None = None
        self.site = 0
        self.effects = Effects()
        self._exec: Value | None = None
        self._exits = 0

    def begin_block(self) -> None:
        self._exec = None
        self.indexed: frozenset[str] = frozenset()  # operands under s_set_gpr_idx_on

    def unsupported(self, why: str) -> UnsupportedInstruction:
        return UnsupportedInstruction(why)

    # Scalar registers.

    def sgpr(self, index: int, bits: int = 32, role: str = "sread") -> Value:
        self.check_sgprs(index, bits // 32)
        self.effects.add(role, index, bits // 32)
        pointer = self.pointer("%w", layout.SGPR + 4 * index)
        return self.load(f"i{bits}", pointer, 4)

    def check_sgprs(self, first: int, count: int) -> None:
        if first + count - 1 > LAST_SGPR:
            raise self.unsupported("a scalar register range past the end of its file")

    def set_sgpr(self, index: int, value: Value) -> None:
        self.check_sgprs(index, width(value.ty) // 32)
        self.effects.add("swrite", index, width(value.ty) // 32)
        self.store(value, self.pointer("%w", layout.SGPR + 4 * index), 4)
        if index + width(value.ty) // 32 > EXEC:
            self._exec = None

    @property
    def scc(self) -> Value:
        self.effects.add("sread", SCC_INDEX, 1)
        return self.cast("trunc", self.load("i32", self.pointer("%w", layout.SCC), 4), "i1")

    def set_scc(self, bit: Value) -> None:
        self.effects.add("swrite", SCC_INDEX, 1)
        self.store(self.cast("zext", bit, "i32"), self.pointer("%w", layout.SCC), 4)

    def scalar(self, operand: Operand, ty: str = "i32") -> Value:
        """A scalar source of type `ty` (i16, i32, i64, half, float or double)."""
        bits = width(ty)
        if operand.kind == "s":
            value = self.sgpr(operand.index, max(bits, 32))
        elif operand.kind in ("int", "float"):
            value = self.const(f"i{max(bits, 32)}", constant_bits(operand, ty))
        elif operand.kind == "name":
            value = self._named(str(operand.value), max(bits, 32))
        else:
            raise self.unsupported(f"operand {operand} is not a scalar")
        if bits < 32:
            value = self.cast("trunc", value, f"i{bits}")
        return self.cast("bitcast", value, ty)

    def _named(self, name: str, bits: int) -> Value:
        if name in NAMED_64:
            return self.const(f"i{bits}", NAMED_64[name] if bits == 64 else NAMED_64[name] >> 32)
        if name == "scc":
            return self.cast("zext", self.scc, f"i{bits}")
        if name in ("vccz", "execz"):
            mask = self.sgpr(VCC if name == "vccz" else EXEC, 64)
            return self.cast("zext", self.icmp("eq", mask, self.const("i64", 0)), f"i{bits}")
        raise self.unsupported(f"scalar source {name!r}")

    # Lane masks.

    def mask(self, operand: Operand) -> Value:
        """An SGPR pair, or a constant, as one bit a lane."""
        return self.cast("bitcast", self.scalar(operand, "i64"), V("i1"))

    @property
    def exec(self) -> Value:
        if self._exec is None:
            self._exec = self.cast("bitcast", self.sgpr(EXEC, 64), V("i1"))
        return self._exec

    def set_mask(self, index: int, bits: Value) -> None:
        """Write a lane mask; lanes outside EXEC become 0."""
        active = self.op("and", bits, self.exec)
        self.set_sgpr(index, self.cast("bitcast", active, "i64"))

    # Vector registers.

    def row(self, operand: Operand, part: int = 0) -> int:
        """Byte offset of a vector register in the wave's state."""
        if operand.kind not in ("v", "a"):
            raise self.unsupported(f"operand {operand} is not a vector register")
        if operand.index + max(part, operand.count - 1) > LAST_ROW:
            raise self.unsupported("a register range past the end of its file")
        index = operand.index + part + (256 if operand.kind == "a" else 0)
        return layout.VGPR + layout.ROW_BYTES * index

    def vgpr(self, operand: Operand, part: int = 0) -> Value:
        self.effects.add("read", self.number(operand) + part, 1)
        return self.old(operand, part)

    def old(self, operand: Operand, part: int = 0) -> Value:
        """A register that is about to be overwritten in part: not a use of its value."""
        return self.load(V("i32"), self.pointer("%w", self.row(operand, part)), 64)

    def number(self, operand: Operand) -> int:
        """Register number in the unified file: v0 to v255, then a0 to a255."""
        return (self.row(operand) - layout.VGPR) // layout.ROW_BYTES

    def set_vgpr(self, operand: Operand, value: Value, part: int = 0, mask: Value | None = None):
        """Write one 32-bit register in the lanes of EXEC (or of `mask`)."""
        self.effects.add("write", self.number(operand) + part, 1)
        pointer = self.pointer("%w", self.row(operand, part))
        value = self.cast("bitcast", value, V("i32"))
        old = self.load(V("i32"), pointer, 64)
        kept = self.select(mask or self.exec, value, old)
        self.store(kept, pointer, 64)

    def vector(self, operand: Operand, ty: str) -> Value:
        """A source of lane type `ty`, without modifiers: a register, or a broadcast scalar."""
        if operand.kind not in ("v", "a"):
            return self.splat(self.scalar(operand, ty))
        bits = width(ty)
        low = self.vgpr(operand)
        if bits == 64:
            return self.cast("bitcast", self.pair(low, self.vgpr(operand, 1)), V(ty))
        if bits < 32:
            low = self.cast("trunc", low, V(f"i{bits}"))
        return self.cast("bitcast", low, V(ty))

    def two_halves(self, operand: Operand) -> Value:
        """A 32-bit source of two 16-bit parts; a float constant is one half, below a 0."""
        if operand.kind == "float":
            return self.const(V("i32"), constant_bits(operand, "half"))
        return self.vector(operand, "i32")

    def write(self, operand: Operand, value: Value, mask: Value | None = None) -> None:
        """Write a 16-, 32- or 64-bit lane value; 16-bit results clear the upper half."""
        bits = width(value.ty)
        value = self.cast("bitcast", value, like(value.ty, f"i{bits}"))
        if bits == 64:
            low, high = self.halves(value)
            self.set_vgpr(operand, low, 0, mask)
            self.set_vgpr(operand, high, 1, mask)
            return
        if bits < 32:
            value = self.cast("zext", value, V("i32"))
        self.set_vgpr(operand, value, 0, mask)

    def pair(self, low: Value, high: Value) -> Value:
        wide = like(low.ty, "i64")
        up = self.op("shl", self.cast("zext", high, wide), self.const(wide, 32))
        return self.op("or", up, self.cast("zext", low, wide))

    def halves(self, value: Value) -> tuple[Value, Value]:
        word = like(value.ty, "i32")
        low = self.cast("trunc", value, word)
        high = self.op("lshr", value, self.const(value.ty, 32))
        return low, self.cast("trunc", high, word)

    # The MODE register.

    def flush_input(self, value: Value) -> Value:
        """A float source under the denormal mode (field 0 and 2 flush inputs)."""
        return self._flushed(value, 0)

    def flush_output(self, value: Value) -> Value:
        """A float result under the denormal mode (field 0 and 1 flush outputs)."""
        return self._flushed(value, 1)

    def _flushed(self, value: Value, bit: int) -> Value:
        if not self.dynamic_mode or scalar_of(value.ty) not in FLOATS:
            return value
        field = 4 if scalar_of(value.ty) == "float" else 6
        mode = self.load("i32", self.pointer("%w", layout.MODE), 4)
        kept = self.op("and", mode, self.const("i32", 1 << (field + bit)))
        flushes = self.icmp("eq", kept, self.const("i32", 0))
        smallest = {"half": 2.0**-14, "float": 2.0**-126, "double": 2.0**-1022}
        limit = self.const(value.ty, smallest[scalar_of(value.ty)])
        tiny = self.fcmp("olt", self.intrinsic("fabs", value), limit)
        zero = self.intrinsic("copysign", self.const(value.ty, 0.0), value)
        return self.select(flushes, self.select(tiny, zero, value), value)

    # Leaving the piece.

    def exit_if(self, condition: Value, code: int) -> None:
        """Return `code` from the piece if the i1 `condition` holds."""
        self._exits += 1
        out, on = f"exit{self._exits}", f"on{self._exits}"
        self.do(f"br i1 {condition.name}, label %{out}, label %{on}, !prof !0")
        self.label(out)
        self.do(f"ret i32 {code}")
        self.label(on)

    def runtime(self, function: str, *args: Value) -> None:
        """Call a runtime function that returns nonzero on a fault, which ends the piece."""
        state = Value("%w", "ptr")
        failed = self.call("i32", function, state, self.const("i32", self.site), *args)
        self.exit_if(self.icmp("ne", failed, self.const("i32", 0)), layout.FAULTED)


def constant_bits(operand: Operand, ty: str) -> int:
    """Bits of an inline or literal constant read as `ty` (ISA manual, "Scalar ALU operands").

    A float constant is the float of the operand's width; in an integer operand it is the pattern
    of that width. A literal in a double operand is its upper half.
    """
    scalar, bits = scalar_of(ty), width(ty)
    if operand.kind == "float":
        value = float(operand.value)
        if value == 0.15915494:
            return {16: 0x3118, 32: 0x3E22F983, 64: 0x3FC45F306DC9C882}[bits]
        form = {16: "<e", 32: "<f", 64: "<d"}[bits]
        return int.from_bytes(struct.pack(form, value), "little")
    value = int(operand.value)
    inline = -16 <= value <= 64
    if scalar == "double" and not inline:
        return (value & 0xFFFFFFFF) << 32
    assert scalar in FLOATS or scalar.startswith("i")
    return value & ((1 << max(bits, 32)) - 1)
