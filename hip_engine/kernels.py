"""Builds the gfx942 code object from `kernels/` and caches it by the content of what made it."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hip_engine.errors import KernelBuildError
from hip_engine.toolchain import TARGET, cache_dir, find_compiler, run, write_atomically

SOURCES = Path(__file__).resolve().parent.parent / "kernels"
UNIT = "all.hip"
FLAGS = (
    *("-x", "hip", f"--offload-arch={TARGET}", "--offload-device-only", "--no-gpu-bundle-output"),
    *("-nogpulib", "-nogpuinc", "-std=c++17", "-O3", "-ffp-contract=off", "-fuse-cuid=none"),
    # Plain arguments that come first are in registers when a wave starts: a round trip less.
    *("-mllvm", "-amdgpu-kernarg-preload-count=16"),
    *("-Wall", "-Wextra", "-Werror"),
)


class Instance(NamedTuple):
    """What attention is compiled for: head size, and cache type as kernel symbols spell it."""

    head_dim: int = 64
    cache: str = "f16"

    @property
    def flags(self) -> tuple[str, str]:
        return f"-DGRETA_HEAD_DIM={self.head_dim}", f"-DGRETA_KV_{self.cache}"


DEFAULT = Instance()


class Patch(NamedTuple):
    """A change of one source file, in memory: `old` must occur exactly once in `file`."""

    file: str
    old: str
    new: str


def build(patches: Sequence[Patch] = (), instance: Instance = DEFAULT) -> bytes:
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
    flags = (*FLAGS, *instance.flags)
    cached = cache_dir("kernels") / f"{_content_key(sources, flags, version)}.co"
    if cached.exists():
        return cached.read_bytes()
    code_object = _compile(compiler, flags, sources)
    write_atomically(cached, code_object)
    return code_object


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


def _content_key(sources: dict[str, str], flags: Sequence[str], version: str) -> str:
    digest = hashlib.sha256()
    for part in (version, *flags, *(item for pair in sources.items() for item in pair)):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _compile(compiler: str, flags: Sequence[str], sources: dict[str, str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="greta-kernels-") as directory:
        for name, text in sources.items():
            Path(directory, name).write_text(text)
        done = run([compiler, *flags, UNIT, "-o", "kernels.co"], cwd=directory)
        output = Path(directory, "kernels.co")
        if done.returncode != 0 or not output.exists():
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            hint = "; is lld of the same version installed?" if "lld" in done.stderr else ""
            raise KernelBuildError(
                f"{compiler} failed: {(errors or [done.stderr.strip()])[0]}{hint}"
            )
        return output.read_bytes()
