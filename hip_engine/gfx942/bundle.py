"""Code objects inside what hipcc makes: offload bundles, compressed bundles and host ELF files.

Formats from LLVM's "Clang Offload Bundler" page. A file may hold several bundles (one for each
translation unit of a program), each padded to a page.
"""

import ctypes
import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from hip_engine.errors import CodeObjectError
from hip_engine.gfx942.code_object import WrongProcessor
from hip_engine.toolchain import TARGET

ELF, BUNDLE, COMPRESSED = b"\x7fELF", b"__CLANG_OFFLOAD_BUNDLE__", b"CCOB"
EM_X86_64 = 62
FATBIN_SECTION = ".hip_fatbin"
MAX_ENTRIES, MAX_ID_BYTES = 4096, 4096
MAX_UNCOMPRESSED_BYTES = 1 << 31
ZLIB, ZSTD = 0, 1
# Version of a compressed bundle -> layout of its sizes: (file, uncompressed), hash last.
COMPRESSED_HEADERS = {1: "<4sHHIQ", 2: "<4sHHIIQ", 3: "<4sHHQQQ"}


@dataclass(frozen=True)
class Entry:
    """One code object of a bundle. `target` is its processor with features: gfx942:sramecc+."""

    kind: str
    target: str
    data: bytes

    def runs_on(self, processor: str) -> bool:
        """This chip has sramecc on and runs with xnack off, so code for the opposite does not."""
        name, *features = self.target.split(":")
        return name == processor and not {"xnack+", "sramecc-"} & set(features)


def select(data: bytes, processor: str = TARGET) -> tuple[bytes, ...]:
    """Every code object for `processor` in a bare code object, a bundle or a host ELF file.

    A bare code object is returned as it is: CodeObject.parse checks its processor.

    Raises:
      CodeObjectError: none of these, damaged, or for other processors, which are named.
    """
    if data[:4] == ELF and not _is_host(data):
        return (data,)
    entries = [e for e in unbundle(data) if e.kind != "host"]
    chosen = tuple(e.data for e in entries if e.data and e.runs_on(processor))
    if not chosen:
        others = ", ".join(dict.fromkeys(e.target for e in entries)) or "no GPU"
        raise WrongProcessor(
            f"the bundle holds code for {others}, not {processor} "
            f"with xnack off: rebuild it with --offload-arch={processor}"
        )
    return chosen


def unbundle(data: bytes) -> list[Entry]:
    """All entries of every bundle in a file, in order, compressed ones expanded.

    Raises:
      CodeObjectError: no bundle, or a damaged one.
    """
    if data[:4] == ELF:
        data = _fatbin_section(data)
    if data[:4] not in (BUNDLE[:4], COMPRESSED):
        raise CodeObjectError(
            "neither a code object nor an offload bundle: the file begins with "
            f"{data[:8].hex(' ') or 'nothing'}"
        )
    entries: list[Entry] = []
    position = 0
    while position < len(data):
        size = bundle_bytes(data[position:])
        entries += _entries(_expand(data[position : position + size]))
        position += size
        while position < len(data) and data[position] == 0:
            position += 1
    return entries


def bundle_bytes(data: bytes) -> int:
    """Length of the bundle at the start of `data`, from its own header."""
    if data[:4] == COMPRESSED:
        total, _, _ = _compressed_header(data)
        return total or len(data)
    return max((offset + size for _, offset, size in _table(data)), default=len(BUNDLE) + 8)


def _table(data: bytes) -> Iterator[tuple[str, int, int]]:
    """(id, offset, size) of each entry of an uncompressed bundle."""
    if not data.startswith(BUNDLE):
        raise CodeObjectError("corrupt offload bundle: no magic where a bundle should begin")
    try:
        (count,) = struct.unpack_from("<Q", data, len(BUNDLE))
        if count > MAX_ENTRIES:
            raise CodeObjectError(f"corrupt offload bundle: it claims {count} entries")
        position = len(BUNDLE) + 8
        for _ in range(count):
            offset, size, id_bytes = struct.unpack_from("<QQQ", data, position)
            position += 24
            if id_bytes > MAX_ID_BYTES or position + id_bytes > len(data):
                raise CodeObjectError("corrupt offload bundle: an entry's name is cut off")
            yield data[position : position + id_bytes].decode("ascii", "replace"), offset, size
            position += id_bytes
    except struct.error as error:
        raise CodeObjectError(f"truncated offload bundle: {error}") from error


def _entries(data: bytes) -> Iterator[Entry]:
    for name, offset, size in _table(data):
        if offset + size > len(data):
            raise CodeObjectError(f"truncated offload bundle: {name} reaches past the end of file")
        kind = name.partition("-")[0]
        # hipv4-amdgcn-amd-amdhsa--gfx942:sramecc+; the environment field may be empty or absent.
        match = re.search(r"gfx[0-9a-z-]+(:[a-z+:-]+)?$", name)
        target = match[0] if match and kind != "host" else name
        yield Entry(kind, target, data[offset : offset + size])


def _compressed_header(data: bytes) -> tuple[int, int, int]:
    """(bytes of the bundle or 0 if not recorded, bytes of its header, uncompressed bytes)."""
    if len(data) < 8:
        raise CodeObjectError("truncated compressed bundle: its header is cut off")
    (version,) = struct.unpack_from("<H", data, 4)
    if version not in COMPRESSED_HEADERS:
        raise CodeObjectError(f"compressed bundle of version {version}: 1, 2 and 3 are known")
    layout = COMPRESSED_HEADERS[version]
    if len(data) < struct.calcsize(layout):
        raise CodeObjectError("truncated compressed bundle: its header is cut off")
    *_, uncompressed, _ = fields = struct.unpack_from(layout, data)
    total = fields[3] if version > 1 else 0
    header = struct.calcsize(layout)
    if not 0 < uncompressed <= MAX_UNCOMPRESSED_BYTES or (total and total <= header):
        raise CodeObjectError("corrupt compressed bundle: its sizes make no sense")
    return total, header, uncompressed


def _expand(data: bytes) -> bytes:
    if data[:4] != COMPRESSED:
        return data
    total, header, uncompressed = _compressed_header(data)
    if total > len(data):
        raise CodeObjectError("truncated compressed bundle: it reaches past the end of file")
    (method,) = struct.unpack_from("<H", data, 6)
    if method == ZLIB:
        try:
            expanded = zlib.decompressobj().decompress(data[header:], uncompressed)
        except zlib.error as error:
            raise CodeObjectError(f"corrupt compressed bundle: {error}") from error
    elif method == ZSTD:
        expanded = _zstd(data[header:], uncompressed)
    else:
        raise CodeObjectError(f"compressed bundle: method {method} is neither zlib nor zstd")
    if len(expanded) != uncompressed:
        raise CodeObjectError(
            f"corrupt compressed bundle: {len(expanded)} bytes where {uncompressed} were promised"
        )
    return expanded


def _zstd(data: bytes, size: int) -> bytes:
    """Through the system's libzstd, which LLVM needs too; Python has none before 3.14."""
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError as error:
        raise CodeObjectError(
            "this bundle is compressed with zstd and libzstd.so.1 is not here: "
            "apt-get install libzstd1, or clang-offload-bundler --unbundle it first"
        ) from error
    library.ZSTD_decompress.restype = ctypes.c_size_t
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    expanded = ctypes.create_string_buffer(size)
    got = library.ZSTD_decompress(expanded, ctypes.c_size_t(size), data, ctypes.c_size_t(len(data)))
    if library.ZSTD_isError(ctypes.c_size_t(got)):
        reason = library.ZSTD_getErrorName(ctypes.c_size_t(got)).decode()
        raise CodeObjectError(f"corrupt compressed bundle: {reason}")
    return expanded.raw[:got]


def _is_host(data: bytes) -> bool:
    return len(data) >= 20 and struct.unpack_from("<H", data, 18)[0] == EM_X86_64


def _fatbin_section(data: bytes) -> bytes:
    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(FATBIN_SECTION)
        content = section.data() if section else b""
    except (ELFError, ConstructError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise CodeObjectError(f"corrupt host file: {error}") from error
    if not content:
        raise CodeObjectError(f"a host ELF file without HIP kernels: it has no {FATBIN_SECTION}")
    return content
