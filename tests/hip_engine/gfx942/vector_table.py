"""All rows of the vector ALU opcodes, in the order in which they are tested."""

from tests.hip_engine.gfx942 import (  # noqa: F401
    vector_float_rows,
    vector_form_rows,
    vector_integer_rows,
    vector_media_rows,
)
from tests.hip_engine.gfx942.vector_rows import ROWS, Row

__all__ = ["ROWS", "Row"]
