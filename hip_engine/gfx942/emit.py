"""A small writer of LLVM IR text: typed values in, one line of IR out.

Python objects for every IR node would cost more than LLVM itself; here a line costs a few
microseconds. Types are LLVM's own spellings. `V(t)` is the 64-lane vector of `t`.
"""

import struct
from typing import NamedTuple

from hip_engine.gfx942 import layout

FLOATS = {"half": 16, "float": 32, "double": 64}


def V(scalar: str) -> str:
    return f"<{layout.LANES} x {scalar}>"


def scalar_of(ty: str) -> str:
    return ty[ty.index("x ") + 2 : -1] if ty.startswith("<") else ty


def like(ty: str, scalar: str) -> str:
    """`scalar` with the lane count of `ty`."""
    return f"<{ty[1 : ty.index(' ')]} x {scalar}>" if ty.startswith("<") else scalar


def width(ty: str) -> int:
    scalar = scalar_of(ty)
    return FLOATS.get(scalar) or int(scalar[1:])


class Value(NamedTuple):
    """An SSA name or a constant, with its type."""

    name: str
    ty: str


class Emit:
    """Collects the body of one function and the intrinsics it declares."""

    def __init__(self):
        self.lines: list[str] = []
        self.declared: dict[str, str] = {}
        self._names = 0

    def fresh(self, prefix: str = "t") -> str:
        self._names += 1
        return f"{prefix}{self._names}"

    def let(self, ty: str, text: str) -> Value:
        name = "%" + self.fresh()
        self.lines.append(f"  {name} = {text}")
        return Value(name, ty)

    def do(self, text: str) -> None:
        self.lines.append("  " + text)

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    # Constants.

    def const(self, ty: str, value: int | float) -> Value:
        """A constant of `ty`; floats by their exact bits, vectors as splats."""
        scalar = scalar_of(ty)
        if scalar in FLOATS:
            text = self._float_text(scalar, value)
        else:
            bits = int(scalar[1:])
            value = int(value) & ((1 << bits) - 1)
            text = ("true" if value else "false") if bits == 1 else str(value)
        return Value(f"splat ({scalar} {text})" if ty.startswith("<") else text, ty)

    @staticmethod
    def _float_text(scalar: str, value: float) -> str:
        if scalar == "half":
            return f"0xH{struct.unpack('<H', struct.pack('<e', value))[0]:04X}"
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"

    def splat(self, value: Value) -> Value:
        """Broadcast a scalar to the 64 lanes."""
        ty = V(value.ty)
        if not value.name.startswith("%"):
            return Value(f"splat ({value.ty} {value.name})", ty)
        one = self.let(ty, f"insertelement {ty} poison, {value.ty} {value.name}, i64 0")
        zeros = f"<{layout.LANES} x i32> zeroinitializer"
        return self.let(ty, f"shufflevector {ty} {one.name}, {ty} poison, {zeros}")

    # Instructions.

    def op(self, opcode: str, x: Value, y: Value) -> Value:
        assert x.ty == y.ty, (opcode, x, y)
        return self.let(x.ty, f"{opcode} {x.ty} {x.name}, {y.name}")

    def cast(self, opcode: str, x: Value, ty: str) -> Value:
        return x if x.ty == ty else self.let(ty, f"{opcode} {x.ty} {x.name} to {ty}")

    def compare(self, opcode: str, condition: str, x: Value, y: Value) -> Value:
        assert x.ty == y.ty, (condition, x, y)
        ty = like(x.ty, "i1")
        return self.let(ty, f"{opcode} {condition} {x.ty} {x.name}, {y.name}")

    def icmp(self, condition: str, x: Value, y: Value) -> Value:
        return self.compare("icmp", condition, x, y)

    def fcmp(self, condition: str, x: Value, y: Value) -> Value:
        return self.compare("fcmp", condition, x, y)

    def select(self, c: Value, x: Value, y: Value) -> Value:
        assert x.ty == y.ty, (x, y)
        return self.let(x.ty, f"select {c.ty} {c.name}, {x.ty} {x.name}, {y.ty} {y.name}")

    def neg(self, x: Value) -> Value:
        return self.let(x.ty, f"fneg {x.ty} {x.name}")

    def invert(self, x: Value) -> Value:
        return self.op("xor", x, self.const(x.ty, -1))

    def call(self, ty: str, name: str, *args: Value) -> Value:
        self.declared[name] = f"declare {ty} @{name}({', '.join(a.ty for a in args)})"
        inner = ", ".join(f"{a.ty} {a.name}" for a in args)
        if ty == "void":
            self.do(f"call void @{name}({inner})")
            return Value("", "void")
        return self.let(ty, f"call {ty} @{name}({inner})")

    def intrinsic(self, name: str, *args: Value, result: str | None = None) -> Value:
        """An LLVM intrinsic overloaded on its first argument's type."""
        ty = result or args[0].ty
        overload = ty
        if ty.startswith("<"):
            overload = f"v{layout.LANES}{scalar_of(ty)}"
        overload = overload.replace("float", "f32").replace("double", "f64").replace("half", "f16")
        return self.call(ty, f"llvm.{name}.{overload}", *args)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        return self.intrinsic("fma", x, y, z)

    def lanes(self, x: Value, order: list[int]) -> Value:
        """Lane i of the result is lane order[i] of x."""
        mask = ", ".join(f"i32 {i}" for i in order)
        return self.let(
            x.ty, f"shufflevector {x.ty} {x.name}, {x.ty} poison, <{len(order)} x i32> <{mask}>"
        )

    def load(self, ty: str, pointer: Value, align: int) -> Value:
        return self.let(ty, f"load {ty}, ptr {pointer.name}, align {align}")

    def store(self, value: Value, pointer: Value, align: int) -> None:
        self.do(f"store {value.ty} {value.name}, ptr {pointer.name}, align {align}")

    def pointer(self, base: str, offset: int) -> Value:
        if offset == 0:
            return Value(base, "ptr")
        return self.let("ptr", f"getelementptr i8, ptr {base}, i64 {offset}")
