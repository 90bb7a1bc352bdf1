"""Runs one kernel of a file of gfx942 code on arrays, and writes what it left in them.

  python -m hip_engine.gfx942 run saxpy.co --kernel=saxpy --grid=4 --block=256 \\
      --args=args.json --out=out.npz

Arguments, in a .json file (a list in order, or an object: by the kernel's argument names, or in
the file's order where the object file has no names, as with HIP):
  7, 2.5                                      a number, in the width of the kernel's argument
  {"dtype": "float32", "data": [1, 2, 3]}     an array; the kernel gets its device address
  {"dtype": "float32", "zeros": [64, 64]}     an array of zeros, for a result
  {"dtype": "float16", "value": 1.5}          a number of this type
or a .npz file: arrays by name or as arg0, arg1, ...; arrays without dimensions are numbers.

An object without metadata (hand-written assembly) needs --layout, a Python struct format with P
for every array: --layout=PPif. --out=out.npz gets every array as the kernel left it.
"""

import argparse
import dataclasses
import json
import re
import zipfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hip_engine.device import LaunchRecord
from hip_engine.errors import LaunchError
from hip_engine.gfx942.device import EmulatedDevice
from hip_engine.gfx942.dispatch import BUDGET
from hip_engine.gfx942.program import Program, ProgramKernel
from hip_engine.gfx942.sanitizer import CHECKS

POSITIONAL = re.compile(r"arg(\d+)$")
MAX_ARRAY_BYTES = 1 << 36


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="code object, bundle or host program")
    parser.add_argument("--kernel", help="its symbol; may be left out if there is only one")
    parser.add_argument("--grid", type=_sizes, default=(1, 1, 1), help="blocks: 4 or 4,2,1")
    parser.add_argument("--block", type=_sizes, default=(64, 1, 1), help="work-items: 256 or 16,16")
    parser.add_argument("--args", type=Path, help="arguments: a .json or .npz file")
    parser.add_argument("--layout", help="struct format of the arguments, without metadata")
    parser.add_argument("--lds", type=int, default=0, help="dynamic LDS bytes")
    parser.add_argument("--out", type=Path, help="write the arrays after the run to this .npz")
    parser.add_argument("--threads", type=int, help="workgroups at a time (default: all cores)")
    parser.add_argument("--budget", type=int, default=BUDGET, help="instructions a wave may run")
    parser.add_argument("--sanitize", default="", help=f"checks: {','.join(CHECKS)}")
    parser.add_argument("--counters", action="store_true", help="count bytes, lines, conflicts")


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use 4 or 4,2,1") from None
    if not 1 <= len(sizes) <= 3:
        raise argparse.ArgumentTypeError(f"{text!r}: one to three sizes")
    return (*sizes, 1, 1)[:3]


def main(options: argparse.Namespace) -> int:
    if options.out and not options.out.parent.is_dir():
        raise LaunchError(f"--out={options.out}: there is no folder {options.out.parent}")
    device = EmulatedDevice(
        options.threads, options.budget, options.sanitize, counters=options.counters
    )
    program = Program(options.file.read_bytes(), device)
    if options.kernel is None and len(program) > 1:
        raise LaunchError(f"--kernel is needed: the file has {', '.join(program)}")
    kernel = program[options.kernel or next(iter(program))]
    values = in_order(kernel, read_arguments(options.args) if options.args else [])
    before = {name: v.copy() for name, v in values.items() if _is_array(v)}
    record = kernel.launch(
        options.grid,
        options.block,
        list(values.values()),
        layout=options.layout,
        dynamic_lds_bytes=options.lds,
    )
    arrays = {name: values[name] for name in before}
    if options.out:
        np.savez(options.out, **arrays)
    _show(record, arrays, before)
    return 0


def _is_array(value) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0


def read_arguments(path: Path) -> list | dict:
    """Values of a .json or .npz file: numbers, numpy scalars and arrays. Raises LaunchError."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: _scalar_or_array(file[name]) for name in file.files}
        tree = json.loads(path.read_text())
    except (ValueError, zipfile.BadZipFile) as error:
        raise LaunchError(f"--args={path}: {error}") from error
    if isinstance(tree, dict):
        return {name: _value(entry, name) for name, entry in tree.items()}
    if isinstance(tree, list):
        return [_value(entry, f"argument {i}") for i, entry in enumerate(tree)]
    raise LaunchError(f"--args={path}: a list or an object of arguments is needed")


def _scalar_or_array(array: np.ndarray):
    return array if array.ndim else array[()]


def _value(entry, name: str):
    """One entry of a JSON file."""
    if isinstance(entry, bool) or not isinstance(entry, int | float | dict):
        raise LaunchError(f"{name}: {entry!r} is neither a number nor an object with a dtype")
    if not isinstance(entry, dict):
        return entry
    try:
        dtype = np.dtype(entry["dtype"])
        forms = entry.keys() - {"dtype"}
        if forms == {"data"}:
            return np.atleast_1d(np.array(entry["data"], dtype))
        if forms == {"value"}:
            return dtype.type(entry["value"])
        if forms == {"zeros"}:
            shape = np.atleast_1d(entry["zeros"])
            if dtype.itemsize * int(np.prod(shape)) > MAX_ARRAY_BYTES:
                raise LaunchError(f"{name}: an array of {entry['zeros']} is too large")
            return np.zeros(shape, dtype)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LaunchError(f"{name}: {type(error).__name__}: {error}") from error
    raise LaunchError(f"{name}: give dtype and one of data, zeros or value, not {sorted(forms)}")


def in_order(kernel: ProgramKernel, given: list | dict) -> dict:
    """Name -> value in the kernel's order.

    Raises:
      LaunchError: missing or unknown names.
    """
    if isinstance(given, list):
        return {f"arg{i}": value for i, value in enumerate(given)}
    names = [a.name for a in kernel.descriptor.arguments if not a.hidden]
    if not any(names) and (len(names) == len(given) or not kernel.descriptor.arguments):
        return given  # nobody named them (HIP does not): the file's order is the kernel's
    if set(given) != set(names) and all(POSITIONAL.match(name) for name in given):
        names = [f"arg{i}" for i in range(len(names))]
    if set(given) != set(names):
        unknown, missing = sorted(set(given) - set(names)), sorted(set(names) - set(given))
        raise LaunchError(
            f"{kernel.symbol} takes {', '.join(filter(None, names)) or len(names)}; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'} "
            "(arg0, arg1, ... give them by position)"
        )
    return {name: given[name] for name in names}


def _show(record: LaunchRecord, arrays: dict, before: dict) -> None:
    console = Console(highlight=False)
    total = sum(record.executed.values())
    classes = ", ".join(f"{name} {count}" for name, count in record.executed.items() if count)
    console.print(f"{record.symbol}: {total} wave instructions ({classes})")
    for shape, count in record.mfma.items():
        console.print(f"  mfma {shape}: {count}")
    if record.memory:
        for field in dataclasses.fields(record.memory):
            value = getattr(record.memory, field.name)
            if isinstance(value, dict):
                moved = ((b.label, t.read, t.written) for b, t in value.items())
                value = "; ".join(f"{label} {r} read, {w} written" for label, r, w in moved)
            console.print(f"  {field.name.replace('_', ' ')}: {value}")
    table = Table()
    for name in ("array", "dtype", "shape", "changed", "first values"):
        table.add_column(name, justify="right" if name == "changed" else "left")
    for name, array in arrays.items():
        flat = array.reshape(-1)
        changed = np.count_nonzero(_bytes(array) != _bytes(before[name]))
        first = np.array2string(flat[:6], separator=", ", threshold=6)
        more = " ..." if flat.size > 6 else ""
        shape = "x".join(map(str, array.shape))
        table.add_row(name, str(array.dtype), shape, f"{changed} of {flat.size}", first + more)
    if arrays:
        console.print(table)


def _bytes(array: np.ndarray) -> np.ndarray:
    """Elements as raw bits, so that NaN equals itself."""
    return np.ascontiguousarray(array).reshape(-1).view(f"V{array.dtype.itemsize}")
