"""Which instructions make a launch's result depend on the order of its workgroups."""

import re

ATOMIC = re.compile(r"(?P<space>global|flat|buffer|s|s_buffer)_atomic_(?P<what>\w+)")
# Integer operations that give the same memory in any order, as long as no old value is asked for.
COMMUTE = ("add", "sub", "smin", "umin", "smax", "umax", "and", "or", "xor")


def order_matters(text: str) -> bool:
    """True for an atomic on memory that rounds, replaces, wraps, or returns the old value."""
    found = ATOMIC.match(text)
    if not found:
        return False
    returns = "sc0" in text.split() or "glc" in text.split()
    return returns or found["what"].removesuffix("_x2") not in COMMUTE
