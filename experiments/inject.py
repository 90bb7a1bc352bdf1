"""Injects a fault into the engine in memory: the files on disk are never touched."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.align.errors import FaultNotApplicable
from experiments.align.faults import HOST, KERNEL, Fault


def kernel_patches(fault: Fault | None) -> list[tuple[str, str, str]]:
    """What Engine.open takes as source_patch."""
    if fault is None or fault.where != KERNEL:
        return []
    return [(fault.file, fault.old, fault.new)]


@contextlib.contextmanager
def host_patch(fault: Fault | None) -> Iterator[None]:
    """Runs the body with the fault in the engine's host code; nothing for other faults.

    Every module of the engine sees the patched definitions while the body runs, and the original
    ones after it. Raises FaultNotApplicable unless the text to replace occurs exactly once.
    """
    if fault is None or fault.where != HOST:
        yield
        return
    module = importlib.import_module(fault.file)
    source = Path(module.__file__).read_text(encoding="utf-8")
    if (count := source.count(fault.old)) != 1:
        raise FaultNotApplicable(
            f"fault {fault.name}: {fault.old!r} occurs {count} times in {fault.file}, must be once"
        )
    before = dict(vars(module))
    code = compile(source.replace(fault.old, fault.new), module.__file__, "exec")
    exec(code, vars(module))
    after = dict(vars(module))
    package = fault.file.partition(".")[0]
    try:
        _rebind(package, before, after)
        yield
    finally:
        _rebind(package, after, before)
        for name in after.keys() - before.keys():
            delattr(module, name)
        vars(module).update(before)


def _rebind(package: str, old: dict, new: dict) -> None:
    """Replaces what `old` defined by what `new` did in every loaded module of the package."""
    replacement = {
        id(value): new[name]
        for name, value in old.items()
        if getattr(value, "__module__", None) == old["__name__"] and name in new
    }
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != package:
            continue
        for attribute, value in list(vars(module).items()):
            if id(value) in replacement:
                setattr(module, attribute, replacement[id(value)])
