"""Code objects and bundles in the caller's memory, whose size nobody tells."""

import os
import struct

from hip_engine.errors import CodeObjectError
from hip_engine.gfx942 import bundle

HEADER_BYTES = 1 << 16


def peek(address: int, nbytes: int) -> bytes:
    """Up to `nbytes` of this process's memory; what is not mapped is cut off, not a crash."""
    file = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        return os.pread(file, nbytes, address)
    except (OSError, OverflowError):
        return b""
    finally:
        os.close(file)


def image_at(address: int) -> bytes:
    """A code object or bundle that begins at `address`, as long as its headers say.

    Raises:
      CodeObjectError: neither, or it reaches into memory that is not mapped.
    """
    head = peek(address, HEADER_BYTES)
    if head[:4] == bundle.ELF and len(head) >= 64:
        nbytes = _elf_bytes(head, address)
    elif head[:4] == bundle.COMPRESSED and head[4:6] == b"\x01\0":
        raise CodeObjectError("a compressed bundle of version 1 does not say how long it is")
    else:
        nbytes = bundle.bundle_bytes(head)
    data = peek(address, nbytes) if nbytes <= bundle.MAX_UNCOMPRESSED_BYTES else b""
    if len(data) < nbytes:
        raise CodeObjectError(f"an image of {nbytes} bytes is not all in memory")
    return data


def _elf_bytes(head: bytes, address: int) -> int:
    program, section = struct.unpack_from("<QQ", head, 32)
    program_size, programs, section_size, sections = struct.unpack_from("<4H", head, 54)
    ends = [64, program + programs * program_size, section + sections * section_size]
    table = peek(address + program, programs * program_size)
    for position in range(0, len(table) - 55, max(program_size, 56)):
        offset, _, _, nbytes = struct.unpack_from("<QQQQ", table, position + 8)
        ends.append(offset + nbytes)
    return max(ends)
