"""Lists the gfx942 opcodes that run here: tested against an independent statement of their
meaning, implemented only, or missing (refused by name, with the reason, when a kernel that needs
one is loaded).

  python -m hip_engine.gfx942 isa                  the table, and the opcodes not tested or missing
  python -m hip_engine.gfx942 isa --family='ds_*'  every opcode of a family with its state
  python -m hip_engine.gfx942 isa --json

"Known" is every mnemonic that llvm-mc 19 accepts for gfx942.
"""

import argparse
import fnmatch
import json
from collections import Counter
from dataclasses import asdict
from itertools import groupby

from rich.console import Console
from rich.table import Table

from hip_engine.gfx942.coverage import coverage
from hip_engine.gfx942.isa.refused import refusal

STATES = ("tested", "untested", "missing")
# Families by prefix, first match wins.
FAMILIES = (
    ("v_mfma", "matrix (MFMA)"),
    ("v_smfmac", "sparse matrix (SMFMAC)"),
    ("v_cmp", "vector compare"),
    ("v_pk_", "packed vector"),
    ("v_cvt", "vector conversion"),
    ("v_", "vector ALU"),
    ("s_load", "scalar memory"),
    ("s_buffer", "scalar memory"),
    ("s_store", "scalar memory"),
    ("s_atomic", "scalar memory"),
    ("s_scratch", "scalar memory"),
    ("s_", "scalar ALU and control"),
    ("ds_", "LDS"),
    ("global_", "global memory"),
    ("flat_", "flat memory"),
    ("scratch_", "scratch memory"),
    ("buffer_", "buffer memory"),
    ("tbuffer_", "buffer memory"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", metavar="PATTERN", help="list opcodes, for example 'v_cvt_*'")
    parser.add_argument("--json", action="store_true", help="the lists, with reasons, as JSON")


def main(options: argparse.Namespace) -> int:
    found = coverage()
    if options.json:
        print(
            json.dumps({**asdict(found), "why": {n: refusal(n) for n in found.missing}}, indent=1)
        )
        return 0
    console = Console()
    if options.family:
        for state in STATES:
            for name in fnmatch.filter(getattr(found, state), options.family):
                console.print(f"{name:40} {state}", highlight=False)
        return 0
    console.print(_table(found))
    if found.untested:
        console.print(f"\nuntested: {', '.join(found.untested)}", highlight=False)
    for why, names in groupby(sorted(found.missing, key=refusal), key=refusal):
        console.print(f"\nmissing, {why}: {', '.join(names)}", highlight=False)
    return 0


def family(name: str) -> str:
    return next((label for prefix, label in FAMILIES if name.startswith(prefix)), "other")


def _table(found) -> Table:
    counts = {state: Counter(family(n) for n in getattr(found, state)) for state in STATES}
    table = Table("family", *STATES, title="gfx942 opcodes of the emulated device")
    for label in dict.fromkeys(label for _, label in FAMILIES):
        row = [counts[state][label] for state in STATES]
        if any(row):
            table.add_row(label, *map(str, row))
    table.add_section()
    table.add_row("all", *(str(len(getattr(found, state))) for state in STATES))
    return table
