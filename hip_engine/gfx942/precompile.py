"""Translates kernels into the cache on the other cores: `python -m hip_engine.gfx942.precompile`.

Every kernel is independent of the others, and LLVM holds the interpreter's lock, so the helpers are
processes. They only fill the cache: whatever one leaves undone, the caller translates itself, and
an instruction that is not implemented is reported there.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hip_engine.errors import CodeObjectError
from hip_engine.gfx942 import jit
from hip_engine.gfx942.code_object import CodeObject, KernelDescriptor
from hip_engine.gfx942.disassembly import disassemble

PAYS_BYTES = 1 << 15  # of machine code to translate; starting a helper takes about a second


def precompile(code: CodeObject, observed: bool) -> None:
    """Share the kernels that are not in the cache between this process and a helper a core."""
    missing = [k for k in code.kernels.values() if not jit.is_cached(code, k, observed)]
    helpers = len(os.sched_getaffinity(0)) - 1
    if not helpers or sum(k.size for k in missing) < PAYS_BYTES:
        return
    shares = divide(missing, helpers + 1)
    jit.runtime()
    with tempfile.NamedTemporaryFile(suffix=".co") as file:
        file.write(code.data)
        file.flush()
        running = [_start(file.name, share, observed) for share in shares[1:] if share]
        compile_all(code, [k.symbol for k in shares[0]], observed)
        for process in running:
            process.wait()


def divide(kernels: list[KernelDescriptor], count: int) -> list[list[KernelDescriptor]]:
    """Shares of about equal size: the largest first, each to the lightest share."""
    shares: list[list[KernelDescriptor]] = [[] for _ in range(count)]
    for kernel in sorted(kernels, key=lambda k: -k.size):
        min(shares, key=lambda s: sum(k.size for k in s)).append(kernel)
    return shares


def compile_all(code: CodeObject, symbols: list[str], observed: bool) -> None:
    """Translate these kernels into the cache; refusals are left to whoever loads the kernel."""
    instructions = disassemble(code.data)
    for symbol in symbols:
        try:
            jit.compile_kernel(code, code.kernels[symbol], lambda: instructions, observed)
        except CodeObjectError:
            continue


def _start(path: str, share: list[KernelDescriptor], observed: bool) -> subprocess.Popen:
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "hip_engine.gfx942.precompile", path, str(int(observed))]
    return subprocess.Popen(
        [*command, *(kernel.symbol for kernel in share)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    _, _path, _observed, *_symbols = sys.argv
    compile_all(CodeObject.parse(Path(_path).read_bytes()), _symbols, bool(int(_observed)))
