"""Random HIP kernels that are also plain C++: a seeded generator of small trees of statements.

A program is a list of phases between barriers. Work-items meet only through LDS (a phase writes
its own slot of one array and reads any slot of the other, written a phase before), through shuffles
between phases, and in integer atomics, so that a loop over work-items computes the same bits.
"""

import random
from dataclasses import dataclass, field

INTEGERS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
FLOATS = ("f16", "bf16", "f32", "f64")
VECTORS = ("h2", "s2", "f2")
BITS = {t: int(t.lstrip("iubf")) for t in (*INTEGERS, *FLOATS)}
WEIGHTED = ("i32", "u32", "f32") * 3 + (
    "i64",
    "u64",
    "f16",
    "bf16",
    "f64",
    "i16",
    "u16",
    "i8",
    "u8",
)
SHUFFLES = {  # name -> how to draw its constant
    "bpermute": (0,),
    "swizzle": (0x041F, 0x081F, 0x7C1F, 0x0010, 0x80B1, 0x8000, 0x001C, 0x03E0),
    "row_shr": (1, 3, 8, 15),
    "row_shl": (1, 2, 15),
    "row_ror": (1, 7, 12),
    "quad_perm": (0xB1, 0x1B, 0x00, 0x4E),
    "row_mirror": (0,),
    "half_mirror": (0,),
    "bcast15": (0,),
    "bcast31": (0,),
    "newbcast": (0, 5, 15),
    "readlane": (0, 17, 35),
    "ballot": (0,),
}


@dataclass
class Statement:
    """Source lines around the statements inside."""

    head: str
    children: list["Statement"] = field(default_factory=list)
    otherwise: list["Statement"] = field(default_factory=list)
    tail: str = ""

    def lines(self) -> list[str]:
        out = [self.head, *(line for c in self.children for line in c.lines())]
        if self.otherwise:
            out += ["} else {", *(line for c in self.otherwise for line in c.lines())]
        return [*out, self.tail] if self.tail else out


@dataclass
class Shuffle:
    """Between two phases: `target` takes in what another lane's `value` is."""

    kind: str
    constant: int
    value: str
    index: str
    target: str


@dataclass
class Program:
    seed: int
    block: int
    variables: dict[str, str]  # name -> type
    lds: tuple[str, str]  # element types
    phases: list[list[Statement]]
    shuffles: list[Shuffle | None]  # after each phase
    noinline: list[bool]


class Generator:
    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.seed = seed
        self.loops = 0

    def pick(self, options):
        return options[self.rng.randrange(len(options))]

    def program(self) -> Program:
        rng = self.rng
        self.variables = {f"x{i}": self.pick(WEIGHTED) for i in range(rng.randint(3, 6))}
        self.variables["n"] = "u32"
        for _ in range(rng.randrange(2)):
            self.variables[f"w{len(self.variables)}"] = self.pick(VECTORS)
        self.lds = (self.pick(WEIGHTED), self.pick(WEIGHTED))
        phases, shuffles = [], []
        for number in range(rng.randint(1, 3)):
            self.phase = number
            phases.append([self.statement(2) for _ in range(rng.randint(2, 4))])
            phases[-1].append(self.store_to_lds())
            shuffles.append(self.shuffle() if rng.random() < 0.6 else None)
        return Program(
            seed=self.seed,
            block=self.pick((64, 64, 100, 128, 192)),
            variables=self.variables,
            lds=self.lds,
            phases=phases,
            shuffles=shuffles,
            noinline=[rng.random() < 0.25 for _ in phases],
        )

    # Statements.

    def statement(self, depth: int) -> Statement:
        choice = self.rng.random()
        if depth and choice < 0.18:
            otherwise = self.body(depth) if self.rng.random() < 0.5 else []
            return Statement(f"if ({self.condition()}) {{", self.body(depth), otherwise, "}")
        if depth and choice < 0.32:
            self.loops += 1
            i = f"k{self.loops}"
            trips = f"({self.expression('u32', 1)} & {self.pick((3, 7))}u)"
            body = self.body(depth - 1)
            if self.rng.random() < 0.4:
                body.append(
                    Statement(f"if ({self.condition()}) {self.pick(('break', 'continue'))};")
                )
            return Statement(f"for (u32 {i} = 0; {i} < {trips}; {i}++) {{", body, [], "}")
        if depth and choice < 0.37:
            body = self.body(depth)
            return Statement(f"switch ({self.expression('u32', 1)} % 3) {{ case 1:", body, [], "}")
        if choice < 0.42:
            kind, slot = self.pick(("u32", "u64")), self.rng.randrange(4)
            operation = ("add", "xor", "or", "and")[slot]  # one a slot, so that order is nothing
            value, where = self.expression(kind, 1), f"counts{kind[1:]}"
            text = f"__atomic_fetch_{operation}(&c.{where}[{slot}], {value}, __ATOMIC_RELAXED);"
            return Statement(text)
        if choice < 0.5:
            slot = f"s.line[{self.expression('u32', 1)} % 5]"
            return Statement(f"{slot} = {self.expression('i32', 2)};")
        name = self.pick(list(self.variables))
        ty = self.variables[name]
        if ty in VECTORS:
            return Statement(f"s.{name} = {self.vector(ty, 2)};")
        return Statement(f"s.{name} = {self.expression(ty, 3)};")

    def body(self, depth: int) -> list[Statement]:
        return [self.statement(depth - 1) for _ in range(self.rng.randint(1, 3))]

    def store_to_lds(self) -> Statement:
        array = self.phase % 2
        value = self.expression(self.lds[array], 2)
        return Statement(f"c.lds{array}[(c.t * {self.pick((1, 7, 13))}u + 2) % BLOCK] = {value};")

    def shuffle(self) -> Shuffle:
        kind = self.pick(list(SHUFFLES))
        value, index = self.expression("u32", 1), self.expression("u32", 1)
        return Shuffle(kind, self.pick(SHUFFLES[kind]), value, index, "s.n")

    # Expressions.

    def condition(self) -> str:
        ty = self.pick(WEIGHTED)
        comparison = self.pick(("<", ">", "<=", ">=", "==", "!="))
        text = f"({self.expression(ty, 1)} {comparison} {self.expression(ty, 1)})"
        if self.rng.random() < 0.2:
            text = f"({text} {self.pick(('&&', '||'))} {self.condition()})"
        return text

    def expression(self, ty: str, depth: int) -> str:
        if depth <= 0 or self.rng.random() < 0.2:
            return self.leaf(ty)
        return self.float_op(ty, depth) if ty in FLOATS else self.integer_op(ty, depth)

    def leaf(self, ty: str) -> str:
        same = [n for n, t in self.variables.items() if t == ty]
        choice = self.rng.random()
        if same and choice < 0.55:
            return f"s.{self.pick(same)}"
        if choice < 0.7:
            return self.literal(ty)
        if choice < 0.8 and ty == "i32":
            return f"s.line[{self.leaf('u32')} % 5]"
        if choice < 0.85 and self.phase and self.lds[(self.phase + 1) % 2] == ty:
            return f"c.lds{(self.phase + 1) % 2}[{self.leaf('u32')} % BLOCK]"
        if choice < 0.9:
            return f"load<{ty}>(c.in, {self.leaf('u32')})"
        other = self.pick([n for n, t in self.variables.items() if t not in VECTORS])
        return f"to_{ty}(s.{other})"

    def literal(self, ty: str) -> str:
        if ty in FLOATS:
            text = self.pick(("0.0", "-0.0", "1.0", "-2.5", "0x1p-20", "3.0e4", "INFINITY_", "0.1"))
            return f"({ty}){text}{'f' if text[-1] != '_' else ''}"
        bits, value = BITS[ty], self.rng.getrandbits(BITS[ty])
        edges = (0, 1, 2, 7, -1, 1 << (bits - 1), (1 << (bits - 1)) - 1, value, value)
        return f"(({ty}){self.pick(edges) & (1 << bits) - 1}ull)"

    def integer_op(self, ty: str, depth: int) -> str:
        x, y = self.expression(ty, depth - 1), self.expression(ty, depth - 1)
        choice = self.rng.random()
        if choice < 0.45:
            return f"({ty})({x} {self.pick(('+', '-', '*', '&', '|', '^', '+', '-'))} {y})"
        if choice < 0.6:
            return f"{self.pick(('shl', 'shr', 'rotate'))}<{ty}>({x}, {self.expression('u32', 0)})"
        if choice < 0.63:
            return f"{self.pick(('quotient', 'remainder'))}<{ty}>({x}, {y})"
        if choice < 0.72:
            return f"({self.condition()} ? {x} : {y})"
        if choice < 0.82:
            name = self.pick(("min", "max", "add_sat", "sub_sat", "mul_high", "abs_difference"))
            return f"{name}_<{ty}>({x}, {y})"
        if choice < 0.9:
            name = self.pick(("popcount", "leading", "trailing", "reverse", "swap", "invert"))
            return f"{name}_<{ty}>({x})"
        other = self.pick(WEIGHTED)
        return f"to_{ty}({self.expression(other, depth - 1)})"

    def float_op(self, ty: str, depth: int) -> str:
        x, y = self.expression(ty, depth - 1), self.expression(ty, depth - 1)
        choice = self.rng.random()
        if choice < 0.5:
            return f"({ty})({x} {self.pick('++--**')} {y})"
        if choice < 0.62 and ty != "bf16":
            return f"fma_({x}, {y}, {self.expression(ty, depth - 1)})"
        if choice < 0.66:
            return f"({ty})({x} / {y})"
        if choice < 0.69 and ty != "bf16":
            return f"sqrt_({x})"
        if choice < 0.78 and ty != "bf16":
            return f"{self.pick(('floor', 'ceil', 'trunc', 'rint', 'fabs'))}_({x})"
        if choice < 0.86:
            # Not a plain minimum: both compilers make an instruction of it that tells -0 from +0
            # where the comparison does not.
            return f"({x} {self.pick('<>')} {y} ? {x} : ({ty})({y} + ({ty})1.0f))"
        if choice < 0.9:
            return f"({ty})(-{x})"
        other = self.pick(WEIGHTED)
        return f"to_{ty}({self.expression(other, depth - 1)})"

    def vector(self, ty: str, depth: int) -> str:
        element = {"h2": "f16", "s2": "i16", "f2": "f32"}[ty]
        same = [n for n, t in self.variables.items() if t == ty]
        if depth <= 0 or self.rng.random() < 0.3:
            if self.rng.random() < 0.6:
                return f"s.{self.pick(same)}" + self.pick(("", ".yx", ".xx"))
            return f"({ty}){{{self.expression(element, 1)}, {self.expression(element, 1)}}}"
        x, y = self.vector(ty, depth - 1), self.vector(ty, depth - 1)
        operators = "+-*&|^" if ty == "s2" else "+-*"
        return f"({x} {self.pick(operators)} {y})"
