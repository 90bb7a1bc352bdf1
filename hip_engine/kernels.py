"""Builds the gfx942 code object from `kernels/` and caches it by the content of what made it."""

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hip_engine.errors import CompilerMissing, KernelBuildError

SOURCES = Path(__file__).resolve().parent.parent / "kernels"
UNIT = "all.hip"
TARGET = "gfx942"
FLAGS = (
    *("-x", "hip", f"--offload-arch={TARGET}", "--offload-device-only", "--no-gpu-bundle-output"),
    *("-nogpulib", "-nogpuinc", "-std=c++17", "-O3", "-ffp-contract=off", "-fuse-cuid=none"),
    *("-Wall", "-Wextra", "-Werror"),
)
KNOWS_TARGET = (
    *("--target=amdgcn-amd-amdhsa", f"-mcpu={TARGET}", "-nogpulib"),
    *("-fsyntax-only", "-x", "c", os.devnull),
)
CLANG_NAMES = ("clang-19", "clang-20", "clang-21", "clang-22")


class Patch(NamedTuple):
    """A change of one source file, in memory: `old` must occur exactly once in `file`."""

    file: str
    old: str
    new: str


def build(patches: Sequence[Patch] = ()) -> bytes:
    """The code object of every kernel, from the cache or from the compiler.

    `patches` (file, old, new) change the sources of this build only; faults are injected so.

    Raises:
      CompilerMissing: neither ROCm's clang nor a clang that knows gfx942.
      KernelBuildError: a patch that does not apply, or the compiler's first error.
    """
    sources = _read_sources()
    for patch in map(Patch._make, patches):
        sources[patch.file] = _apply(patch, sources)
    compiler, version = find_compiler()
    cached = cache_dir() / f"{_content_key(sources, version)}.co"
    if cached.exists():
        return cached.read_bytes()
    code_object = _compile(compiler, sources)
    _write_atomically(cached, code_object)
    return code_object


def cache_dir() -> Path:
    """$XDG_CACHE_HOME/greta-jax/kernels, or the same under ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "greta-jax" / "kernels"


@functools.cache
def find_compiler() -> tuple[str, str]:
    """Path and version text of ROCm's clang, else of a clang of the distribution."""
    rocm = Path(os.environ.get("ROCM_PATH") or "/opt/rocm") / "llvm" / "bin" / "clang"
    tried = []
    for name in (str(rocm), *CLANG_NAMES):
        path = shutil.which(name)
        if path is None:
            continue
        if _run([path, *KNOWS_TARGET]).returncode == 0:
            return path, _run([path, "--version"]).stdout
        tried.append(path)
    found = f"{', '.join(tried)} cannot target {TARGET}" if tried else "no clang found"
    raise CompilerMissing(
        f"{found} (looked for {rocm} and {', '.join(CLANG_NAMES)}): "
        "apt-get install clang-19 lld-19 llvm-19, or set ROCM_PATH"
    )


def _read_sources() -> dict[str, str]:
    files = sorted([*SOURCES.glob("*.hip"), *SOURCES.glob("*.h")])
    if not files:
        raise KernelBuildError(f"no kernel sources in {SOURCES}")
    return {file.name: file.read_text() for file in files}


def _apply(patch: Patch, sources: dict[str, str]) -> str:
    if patch.file not in sources:
        raise KernelBuildError(f"patch of {patch.file}: no such file; have {', '.join(sources)}")
    count = sources[patch.file].count(patch.old)
    if count != 1:
        raise KernelBuildError(
            f"patch of {patch.file}: {patch.old!r} occurs {count} times, must occur once"
        )
    return sources[patch.file].replace(patch.old, patch.new)


def _content_key(sources: dict[str, str], version: str) -> str:
    digest = hashlib.sha256()
    for part in (version, *FLAGS, *(item for pair in sources.items() for item in pair)):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _compile(compiler: str, sources: dict[str, str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="greta-kernels-") as directory:
        for name, text in sources.items():
            Path(directory, name).write_text(text)
        done = _run([compiler, *FLAGS, UNIT, "-o", "kernels.co"], cwd=directory)
        output = Path(directory, "kernels.co")
        if done.returncode != 0 or not output.exists():
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            hint = "; is lld of the same version installed?" if "lld" in done.stderr else ""
            raise KernelBuildError(
                f"{compiler} failed: {(errors or [done.stderr.strip()])[0]}{hint}"
            )
        return output.read_bytes()


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def _run(command: list[str], cwd: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
