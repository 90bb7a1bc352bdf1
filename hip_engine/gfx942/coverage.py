"""Which gfx942 opcodes LLVM knows, which are implemented here, and which have a conformance test.

`isa/llvm19.txt` holds every mnemonic that llvm-mc 19 accepts for gfx942, without encoding suffixes
and alternative spellings; `isa/tested.txt` those that the tests compare with an independent
statement of their meaning (tests/hip_engine/gfx942/coverage_test.py keeps it true).
"""

from dataclasses import dataclass
from pathlib import Path

from hip_engine.gfx942.flow import CONTROL
from hip_engine.gfx942.isa import OPCODES
from hip_engine.gfx942.translate import CONDITIONS, NEVER_TAKEN

ISA = Path(__file__).resolve().parent / "isa"


@dataclass(frozen=True)
class Coverage:
    """Mnemonics in alphabetical order; `missing` ones are refused at load by name."""

    tested: tuple[str, ...]
    untested: tuple[str, ...]
    missing: tuple[str, ...]


def known_to_llvm() -> frozenset[str]:
    return frozenset((ISA / "llvm19.txt").read_text().split())


def implemented() -> frozenset[str]:
    """Emitters of the opcode table, and control flow, which the translator handles itself."""
    return frozenset({*OPCODES, *CONDITIONS, *NEVER_TAKEN, *CONTROL})


def coverage() -> Coverage:
    here, tested = implemented(), frozenset((ISA / "tested.txt").read_text().split())
    return Coverage(
        tested=tuple(sorted(here & tested)),
        untested=tuple(sorted(here - tested)),
        missing=tuple(sorted(known_to_llvm() - here)),
    )
