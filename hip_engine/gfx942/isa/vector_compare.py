"""VOPC: lane comparisons into a mask (v_cmp) or into a mask and EXEC (v_cmpx)."""

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import V, Value, width
from hip_engine.gfx942.isa.operands import source
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.isa.vector_float import FORMAT, biased_exponent, bits_of
from hip_engine.gfx942.wave import EXEC, Wave

# Condition name -> fcmp predicate. The n-forms are the negations, so they hold on NaN.
FLOAT_CONDITIONS = {
    "lt": "olt",
    "eq": "oeq",
    "le": "ole",
    "gt": "ogt",
    "lg": "one",
    "ge": "oge",
    "o": "ord",
    "u": "uno",
    "nge": "ult",
    "nlg": "ueq",
    "ngt": "ule",
    "nle": "ugt",
    "neq": "une",
    "nlt": "uge",
    "f": "false",
    "tru": "true",
}
INTEGER_CONDITIONS = ("lt", "eq", "le", "gt", "ne", "ge")


def _write_mask(w: Wave, inst: Instruction, bits: Value, also_exec: bool) -> None:
    w.set_mask(inst.operands[0].index, bits)
    if also_exec and inst.operands[0].index != EXEC:
        w.set_mask(EXEC, bits)


def _compare(kind: str, predicate: str, ty: str, also_exec: bool):
    def emit(w: Wave, inst: Instruction) -> None:
        x, y = source(w, inst, 1, ty, 0), source(w, inst, 2, ty, 1)
        _write_mask(w, inst, w.compare(kind, predicate, x, y), also_exec)

    return emit


def _constant(value: int, also_exec: bool):
    def emit(w: Wave, inst: Instruction) -> None:
        bits = w.cast("bitcast", w.const("i64", -value), V("i1"))
        _write_mask(w, inst, bits, also_exec)

    return emit


for _x in (False, True):
    _name = "v_cmpx" if _x else "v_cmp"
    for _suffix, _ty in (("f16", "half"), ("f32", "float"), ("f64", "double")):
        for _condition, _predicate in FLOAT_CONDITIONS.items():
            opcode(f"{_name}_{_condition}_{_suffix}")(_compare("fcmp", _predicate, _ty, _x))
    for _bits in (16, 32, 64):
        for _sign in "iu":
            for _condition in INTEGER_CONDITIONS:
                _prefix = "" if _condition in ("eq", "ne") else {"i": "s", "u": "u"}[_sign]
                opcode(f"{_name}_{_condition}_{_sign}{_bits}")(
                    _compare("icmp", _prefix + _condition, f"i{_bits}", _x)
                )
            opcode(f"{_name}_f_{_sign}{_bits}")(_constant(0, _x))
            opcode(f"{_name}_t_{_sign}{_bits}")(_constant(1, _x))


def _classify(ty: str, also_exec: bool):
    def emit(w: Wave, inst: Instruction) -> None:
        """True where src0 is in a class whose bit is set in src1 (sNaN 0 ... +inf 9)."""
        x = source(w, inst, 1, ty, 0)
        wanted = source(w, inst, 2, "i32", 1)
        mantissa_bits, bias = FORMAT[ty]
        word = V(f"i{width(ty)}")
        bits, exponent = bits_of(w, x), biased_exponent(w, x)
        mantissa = w.op("and", bits, w.const(word, (1 << mantissa_bits) - 1))
        negative = w.icmp("slt", bits, w.const(word, 0))
        top = w.icmp("eq", exponent, w.const(word, 2 * bias + 1))
        bottom = w.icmp("eq", exponent, w.const(word, 0))
        empty = w.icmp("eq", mantissa, w.const(word, 0))
        quiet_bit = w.op("and", bits, w.const(word, 1 << (mantissa_bits - 1)))
        quiet = w.icmp("ne", quiet_bit, w.const(word, 0))

        def pick(condition: Value, yes: Value, no: Value) -> Value:
            return w.select(condition, yes, no)

        def index(value: int) -> Value:
            return w.const(V("i32"), value)

        number = pick(bottom, pick(empty, index(5), index(4)), index(3))
        mirrored = w.op("sub", index(11), number)
        finite = pick(negative, number, mirrored)
        infinite = pick(negative, index(2), index(9))
        special = pick(empty, infinite, pick(quiet, index(1), index(0)))
        which = pick(top, special, finite)
        hit = w.op("and", w.op("lshr", wanted, which), index(1))
        _write_mask(w, inst, w.icmp("ne", hit, index(0)), also_exec)

    return emit


for _suffix, _ty in (("f16", "half"), ("f32", "float"), ("f64", "double")):
    opcode(f"v_cmp_class_{_suffix}")(_classify(_ty, False))
    opcode(f"v_cmpx_class_{_suffix}")(_classify(_ty, True))
