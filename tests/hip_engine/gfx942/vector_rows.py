"""Vector ALU opcodes: operands, and a NumPy statement of what the ISA manual says they do.

A row is (opcode, "result source source ...", function, meaning). Functions take arrays of the
source kinds and return the result; `mask` as a result is a lane mask, and a source `carry` is the
lane mask in VCC, and `=f32` the destination's old value, which the text does not name. A function
of an opcode with two results returns both.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

U32, I32, U64, I64 = np.uint32, np.int32, np.uint64, np.int64
U16, I16 = np.uint16, np.int16
F16, F32, F64 = np.float16, np.float32, np.float64


class Row(NamedTuple):
    opcode: str
    kinds: str
    function: Callable
    meaning: str
    ulp: int = 0  # what the manual leaves open in the last place
    text: str = ""  # the instruction where it is not `opcode destination, sources`


ROWS: list[Row] = []


def rows(*given) -> None:
    ROWS.extend(Row(*row) for row in given)


def wide(x):
    return x.astype(I64 if x.dtype.kind == "i" else U64)


def low(n, bits):
    return n & n.dtype.type(bits - 1)


def shifted(name, ty):
    """The count is the first source; its low bits count."""
    move = np.left_shift if name == "shl" else np.right_shift
    return lambda n, x: move(x, low(n, 8 * np.dtype(ty).itemsize).astype(ty))
