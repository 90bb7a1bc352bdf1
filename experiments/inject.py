"""Injects a fault in memory: the files on disk are never touched.

Python code is exchanged inside the functions that are there, so that whoever already holds one, a
table or another module, runs the fault too.
"""

import contextlib
import importlib
import inspect
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from experiments.align.errors import FaultNotApplicable
from experiments.align.faults import Fault, Patch
from greta_jax.gguf.reader import GgufFile

QUERIES = "blk.0.attn_q.weight"


@contextlib.contextmanager
def model_file(fault: Fault | None, model: str) -> Iterator[str]:
    """The model that a fault is run on: `model`, or a copy whose first layer's queries are larger.

    Both sides read the copy, so nothing is wrong with it. Raises FaultNotApplicable if the fp16
    scales of the weight's blocks cannot be multiplied exactly; as `Oracle.open` for a bad file.
    """
    if fault is None or fault.queries == 1.0:
        yield model
        return
    info = GgufFile(model).info(QUERIES)
    if info.dtype != GGMLQuantizationType.Q4_K:
        raise FaultNotApplicable(f"fault {fault.name}: {QUERIES} of {model} is not in Q4_K")
    whole = bytearray(Path(model).read_bytes())
    raw = np.frombuffer(whole, np.float16, info.nbytes // 2, info.offset)
    scales = raw.reshape(-1, GGML_QUANT_SIZES[info.dtype][1] // 2)[:, :2]
    larger = scales.astype(np.float64) * fault.queries
    if not np.array_equal(larger, larger.astype(np.float16)):
        raise FaultNotApplicable(f"fault {fault.name}: {fault.queries} times is not exact in fp16")
    scales[:] = larger
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(model).name
        path.write_bytes(whole)
        yield str(path)


def kernel_patches(fault: Fault | None) -> list[tuple[str, str, str]]:
    """What Engine.open takes as source_patch."""
    patches = fault.patches if fault else ()
    return [(patch.file, patch.old, patch.new) for patch in patches if patch.is_kernel]


@contextlib.contextmanager
def host_patch(fault: Fault | None) -> Iterator[None]:
    """Runs the body with the Python side of the fault in force, everywhere; not after it.

    Raises FaultNotApplicable unless every text to replace occurs exactly once, in a function.
    """
    by_module: dict[str, list[Patch]] = {}
    for patch in fault.patches if fault else ():
        if not patch.is_kernel:
            by_module.setdefault(patch.file, []).append(patch)
    with contextlib.ExitStack() as stack:
        for module, patches in by_module.items():
            stack.enter_context(_in_force(fault.name, module, patches))
        if any("jax" in vars(sys.modules[m]) for m in by_module if m.startswith("greta_jax")):
            # Compiled programs of the code before, and then those of the fault, are forgotten.
            stack.callback(_forget_compiled)
            _forget_compiled()
        yield


@contextlib.contextmanager
def _in_force(name: str, file: str, patches: list[Patch]) -> Iterator[None]:
    module = importlib.import_module(file)
    source = Path(module.__file__).read_text(encoding="utf-8")
    for patch in patches:
        if (count := source.count(patch.old)) != 1:
            raise FaultNotApplicable(
                f"fault {name}: {patch.old!r} occurs {count} times in {file}, must be once"
            )
        source = source.replace(patch.old, patch.new)
    changed = _changed(module, source)
    if not changed:
        raise FaultNotApplicable(f"fault {name}: changes no function of {file}")
    before = [(function, function.__code__) for function, _ in changed]
    try:
        for function, code in changed:
            function.__code__ = code
        yield
    finally:
        for function, code in before:
            function.__code__ = code


def _changed(module: ModuleType, source: str) -> list[tuple[FunctionType, object]]:
    """Functions of the module whose code another source changes, with that code."""
    other = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(source, module.__file__, "exec"), other)
    theirs = dict(_functions(other, module.__name__))
    return [
        (function, theirs[name].__code__)
        for name, function in _functions(vars(module), module.__name__)
        if name in theirs and theirs[name].__code__ != function.__code__
    ]


def _functions(space, module: str, prefix: str = "") -> Iterator[tuple[str, FunctionType]]:
    """Functions and methods that a module defines, by qualified name, decorators looked through."""
    for name, value in list(dict(space).items()):
        if inspect.isclass(value) and value.__module__ == module and not prefix:
            yield from _functions(vars(value), module, f"{name}.")
            continue
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, cached_property):
            value = value.func
        elif isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        value = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, FunctionType) and value.__module__ == module:
            yield f"{prefix}{name}", value


def _forget_compiled() -> None:
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
