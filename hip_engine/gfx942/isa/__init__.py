"""The gfx942 instruction set as tables of small emitters; importing this fills `table.OPCODES`."""

from hip_engine.gfx942.isa import (  # noqa: F401
    buffer,
    indexed,
    lanes,
    lds,
    memory_ops,
    mfma,
    scalar,
    scalar_compare,
    scalar_memory,
    scalar_registers,
    scalar_unary,
    vector_compare,
    vector_convert,
    vector_divide,
    vector_dot,
    vector_float,
    vector_integer,
    vector_media,
    vector_packed,
)
from hip_engine.gfx942.isa.table import OPCODES, instruction_class

__all__ = ["OPCODES", "instruction_class"]
