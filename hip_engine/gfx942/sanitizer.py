"""Names of the sanitizers and their state for one thread."""

import ctypes
from collections.abc import Collection

import numpy as np

from hip_engine.errors import LaunchError
from hip_engine.gfx942 import jit

# Name -> bit (sanitize.h).
CHECKS = {"memory": 1, "init": 2, "race": 4, "waitcnt": 8, "align": 16}
LDS_BYTES = 1 << 16
TOUCH_BYTES = 8


def parse_checks(names: Collection[str] | str) -> frozenset[str]:
    """A set of sanitizer names, from a collection or a comma-separated text.

    Raises:
      LaunchError: an unknown name, with those there are.
    """
    wanted = names.split(",") if isinstance(names, str) else names
    wanted = frozenset(n.strip() for n in wanted if n.strip())
    if unknown := sorted(wanted - CHECKS.keys()):
        raise LaunchError(f"unknown sanitizer {', '.join(unknown)}: there are {', '.join(CHECKS)}")
    return wanted


def check_bits(names: frozenset[str]) -> int:
    return sum(CHECKS[name] for name in names)


class SanitizerStruct(ctypes.Structure):
    """Mirror of the runtime's Sanitizer."""

    _fields_ = [
        ("observers", ctypes.c_void_p),
        ("lds_defined", ctypes.c_void_p),
        ("lds_touched", ctypes.c_void_p),
    ]


class SanitizerState:
    """Observers of the waves of one thread, and its LDS records."""

    def __init__(self, waves: int):
        size = ctypes.CFUNCTYPE(ctypes.c_uint64)(jit.runtime().address("observer_bytes"))()
        self._observers = np.zeros(waves * size, np.uint8)
        self._defined = np.zeros(LDS_BYTES, np.uint8)
        self._touched = np.zeros(LDS_BYTES * TOUCH_BYTES, np.uint8)
        self.struct = SanitizerStruct(
            *(a.ctypes.data for a in (self._observers, self._defined, self._touched))
        )
