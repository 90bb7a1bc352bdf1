"""Shows what is in a file of gfx942 code: for each kernel its arguments, registers, LDS, scratch,
occupancy, the instructions by class and the commonest opcodes, and those that cannot run here.

  python -m hip_engine.gfx942 info kernels.co
  python -m hip_engine.gfx942 info a.out --kernel='gemv_*' --top=20
  python -m hip_engine.gfx942 info kernels.co --block=256 --lds=16384   occupancy of that launch
  python -m hip_engine.gfx942 info kernels.co --json

Occupancy and counts are static figures of the code, not measurements of an MI300X.
"""

import argparse
import fnmatch
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from hip_engine.errors import CodeObjectError, UnsupportedInstruction
from hip_engine.gfx942 import bundle
from hip_engine.gfx942.code_object import CodeObject, KernelDescriptor
from hip_engine.gfx942.disassembly import Instruction, disassemble
from hip_engine.gfx942.isa import instruction_class
from hip_engine.gfx942.occupancy import MAX_WAVES_PER_SIMD, Occupancy, occupancy
from hip_engine.gfx942.translate import survey

WIDE = 250
DETAILED = 4  # kernels that are shown in full without being asked for


@dataclass(frozen=True)
class KernelFacts:
    """What `info` shows of one kernel. Register counts of a kernel without metadata are None."""

    symbol: str
    arguments: tuple[tuple[str, int, int, str], ...]
    kernarg_bytes: int
    vgprs_allocated: int
    vgprs: int | None
    agprs: int | None
    sgprs: int | None
    vgpr_spills: int | None
    sgpr_spills: int | None
    lds_bytes: int
    scratch_bytes: int
    max_workgroup_size: int
    occupancy: Occupancy
    block_items: int
    instructions: int
    classes: dict[str, int]
    opcodes: dict[str, int]
    refused: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="code object, bundle or host program")
    parser.add_argument("--kernel", default="*", help="only these kernels (a pattern)")
    parser.add_argument("--block", type=int, help="work-items a block, for the occupancy")
    parser.add_argument("--lds", type=int, default=0, help="dynamic LDS bytes, for the occupancy")
    parser.add_argument("--top", type=int, default=12, help="opcodes to list (default 12)")
    parser.add_argument("--json", action="store_true", help="everything, for another program")


def main(options: argparse.Namespace) -> int:
    found = facts_of_file(
        options.file.read_bytes(), options.kernel, options.block, dynamic_lds=options.lds
    )
    if options.json:
        print(json.dumps([asdict(facts) for facts in found], indent=1))
        return 0
    console = Console(highlight=False)
    if len(found) > 1:
        table = _overview(found)
        widest = Measurement.get(console, console.options.update(max_width=WIDE), table).maximum
        console.width = max(console.width, widest)
        console.print(table)
    if len(found) > DETAILED and options.kernel == "*":
        console.print("For one of them: --kernel=NAME, or a pattern.")
        return 0
    for facts in found:
        _show(console, facts, options.top)
    return 0


def facts_of_file(
    data: bytes, pattern: str = "*", block_items: int | None = None, dynamic_lds: int = 0
) -> list[KernelFacts]:
    """Facts of every kernel whose name matches, in all gfx942 code objects of a file.

    Raises:
      CodeObjectError: no code object for gfx942, or no kernel of that name.
    """
    found, known = [], []
    for data_of_one in bundle.select(data):
        code = CodeObject.parse(data_of_one)
        instructions = disassemble(code.data)
        for symbol, kernel in code.kernels.items():
            known.append(symbol)
            if fnmatch.fnmatchcase(symbol, pattern):
                found.append(_facts(code, kernel, instructions, block_items, dynamic_lds))
    if not found:
        names = ", ".join(known) or "no kernel"
        raise CodeObjectError(f"no kernel {pattern!r} in the code object; it has: {names}")
    return found


def _facts(code: CodeObject, kernel: KernelDescriptor, instructions, block_items, dynamic_lds):
    try:
        reached, refused = survey(code, kernel, instructions)
    except UnsupportedInstruction as error:
        end = kernel.entry + (kernel.size or code.text[1])
        reached = [i for i in instructions if kernel.entry <= i.address < end]
        refused = [error]
    block_items = block_items or kernel.max_workgroup_size
    return KernelFacts(
        symbol=kernel.symbol,
        arguments=tuple(
            (a.name, a.offset, a.size, a.kind) for a in kernel.arguments if not a.hidden
        ),
        kernarg_bytes=kernel.kernarg_bytes,
        vgprs_allocated=kernel.vgpr_count,
        vgprs=kernel.metadata.get(".vgpr_count"),
        agprs=kernel.metadata.get(".agpr_count"),
        sgprs=kernel.metadata.get(".sgpr_count"),
        vgpr_spills=kernel.metadata.get(".vgpr_spill_count"),
        sgpr_spills=kernel.metadata.get(".sgpr_spill_count"),
        lds_bytes=kernel.lds_bytes,
        scratch_bytes=kernel.scratch_bytes,
        max_workgroup_size=kernel.max_workgroup_size,
        occupancy=occupancy(kernel, block_items, dynamic_lds),
        block_items=block_items,
        instructions=len(reached),
        classes=_count(reached, lambda i: instruction_class(i.mnemonic)),
        opcodes=_count(reached, lambda i: i.base),
        refused=tuple(str(error) for error in refused),
    )


def _count(instructions: list[Instruction], key) -> dict[str, int]:
    return dict(Counter(map(key, instructions)).most_common())


def _overview(found: list[KernelFacts]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(f"{len(found)} kernels", no_wrap=True)
    for name in ("args", "VGPR", "AGPR", "SGPR", "spills", "LDS", "scratch"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("waves", "instr", "mfma", "cannot run"):
        table.add_column(name, justify="right", no_wrap=True)
    for f in found:
        spills = None if f.vgpr_spills is None else f.vgpr_spills + (f.sgpr_spills or 0)
        numbers = (len(f.arguments), f.vgprs, f.agprs, f.sgprs, spills, f.lds_bytes)
        more = (f.scratch_bytes, f.occupancy.waves_per_simd, f.instructions)
        counts = (f.classes.get("mfma", 0), len(f.refused) or "")
        table.add_row(f.symbol, *map(_cell, (*numbers, *more, *counts)))
    return table


def _cell(value) -> str:
    return "?" if value is None else str(value)


def _show(console: Console, f: KernelFacts, top: int) -> None:
    console.rule(f"[bold]{f.symbol}", align="left")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    registers = f"{_cell(f.vgprs)} used, {f.vgprs_allocated} allocated of 512 unified"
    table.add_row("vector registers", f"{registers}; {_cell(f.agprs)} of them AccVGPRs")
    spills = f"{_cell(f.vgpr_spills)} vector and {_cell(f.sgpr_spills)} scalar spills"
    table.add_row("scalar registers", f"{_cell(f.sgprs)}; {spills}")
    table.add_row("LDS, scratch", f"{f.lds_bytes} bytes a block, {f.scratch_bytes} a work-item")
    bound = f"{f.occupancy.waves_per_simd} of {MAX_WAVES_PER_SIMD} waves a SIMD"
    table.add_row(
        "occupancy", f"{bound} in blocks of {f.block_items}, bound by {f.occupancy.bound}"
    )
    classes = ", ".join(f"{name} {count}" for name, count in f.classes.items())
    table.add_row("instructions", f"{f.instructions}: {classes}")
    opcodes = ", ".join(f"{name} {count}" for name, count in list(f.opcodes.items())[:top])
    table.add_row(f"opcodes ({len(f.opcodes)})", opcodes)
    console.print(table)
    if f.arguments:
        rows = Table(show_edge=False, pad_edge=False)
        for name in ("argument", "offset", "bytes", "kind"):
            rows.add_column(name, justify="right" if name in ("offset", "bytes") else "left")
        for name, offset, size, kind in f.arguments:
            rows.add_row(name or "(unnamed)", str(offset), str(size), kind)
        console.print(rows)
    elif f.kernarg_bytes:
        console.print(f"{f.kernarg_bytes} bytes of arguments, not described: run with --layout")
    for line in f.refused:
        console.print(f"[red]cannot run here:[/] {line}", markup=True, soft_wrap=True)
