"""Source lines of code addresses, from the DWARF line tables of a code object built with -g."""

import io

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile


def source_line(data: bytes, address: int) -> str | None:
    """`file:line` of the instruction at a virtual address, or None without debug info."""
    try:
        elf = ELFFile(io.BytesIO(data))
        if not elf.has_dwarf_info():
            return None
        for unit in (dwarf := elf.get_dwarf_info()).iter_CUs():
            if found := _in_unit(dwarf.line_program_for_CU(unit), address):
                return found
    except (ELFError, AssertionError, KeyError, ValueError):
        return None  # damaged debug info must not hide the fault that is being reported
    return None


def _in_unit(program, address: int) -> str | None:
    previous = None
    for entry in program.get_entries() if program else ():
        state = entry.state
        if state is None:
            continue
        if previous and previous.address <= address < state.address:
            files = program["file_entry"]
            base = 0 if program["version"] >= 5 else 1
            name = files[previous.file - base].name.decode(errors="replace")
            return f"{name}:{previous.line}"
        previous = None if state.end_sequence else state
    return None
