"""The compilers this package calls, and the user's cache of what they made."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from hip_engine.errors import CompilerMissing

TARGET = "gfx942"
VERSIONS = (19, 20, 21, 22)
KNOWS_TARGET = (
    *("--target=amdgcn-amd-amdhsa", f"-mcpu={TARGET}", "-nogpulib"),
    *("-fsyntax-only", "-x", "c", os.devnull),
)


def cache_dir(kind: str) -> Path:
    """$XDG_CACHE_HOME/greta-jax/<kind>, or the same under ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "greta-jax" / kind


def write_atomically(path: Path, content: bytes) -> None:
    """Write a cache entry so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def run(
    command: list[str], cwd: str | None = None, text: str | None = None
) -> subprocess.CompletedProcess:
    """`text`: what the command reads from its standard input."""
    return subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True, check=False)


def _candidates(tool: str) -> list[str]:
    rocm = Path(os.environ.get("ROCM_PATH") or "/opt/rocm") / "llvm" / "bin" / tool
    names = (str(rocm), *(f"{tool}-{version}" for version in VERSIONS))
    return [path for path in map(shutil.which, names) if path]


@functools.cache
def find_compiler() -> tuple[str, str]:
    """Path and version text of ROCm's clang, else of a clang of the distribution.

    Raises:
      CompilerMissing: neither is there, or none knows gfx942.
    """
    tried = _candidates("clang")
    for path in tried:
        if run([path, *KNOWS_TARGET]).returncode == 0:
            return path, run([path, "--version"]).stdout
    found = f"{', '.join(tried)} cannot target {TARGET}" if tried else "no clang found"
    raise CompilerMissing(
        f"{found} (looked under ROCM_PATH or /opt/rocm, and for clang-19 to clang-22): "
        "apt-get install clang-19 lld-19 llvm-19, or set ROCM_PATH"
    )


@functools.cache
def find_objdump() -> str:
    """Path of ROCm's llvm-objdump, else of the distribution's.

    Raises:
      CompilerMissing: there is none.
    """
    return _find("llvm-objdump")


@functools.cache
def find_mca() -> str:
    """Path of llvm-mca. Raises CompilerMissing: there is none."""
    return _find("llvm-mca")


def _find(tool: str) -> str:
    for path in _candidates(tool):
        return path
    raise CompilerMissing(f"no {tool} found: apt-get install llvm-19, or set ROCM_PATH")
