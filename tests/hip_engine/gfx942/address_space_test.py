"""Translated code is loaded into a process whose address space has no room left near anything."""

import subprocess
import sys

import pytest

CROWDED = """
import ctypes, sys
from hip_engine.gfx942 import jit

RESERVED, EXACTLY, FAR = 0x4022, 0x100000, 64 << 30
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def reserve(nbytes, at=None, flags=0):
    return libc.mmap(at, nbytes, 0, RESERVED | flags, -1, 0)


jit.cache(), jit.find_compiler(), jit.target_machine()
hole = int(sys.argv[1])
room = reserve(hole + (1 << 17))
last = far = reserve(FAR)
with open("/proc/self/maps") as maps:
    taken = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
for begin, end in sorted(taken):
    if begin > last:
        reserve(begin - last, last, EXACTLY)
    last = max(last, end) if begin >= far else last
libc.munmap(room + (1 << 16), hole)
jit.runtime()
print("loaded")
"""


@pytest.mark.parametrize("hole_bytes", [1 << 16, 5 << 16])
def test_sections_of_one_object_stay_together_when_the_only_hole_takes_some(hole_bytes):
    command = [sys.executable, "-c", CROWDED, str(hole_bytes)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "loaded\n", done.stderr[-500:]
