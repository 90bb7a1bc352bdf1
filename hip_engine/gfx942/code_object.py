"""A gfx942 code object: segments, kernel descriptors and argument metadata of an ELF64 file.

Layout from LLVM's AMDGPU backend user guide, "Code Object V5" and "Kernel Descriptor".
"""

import hashlib
import io
import struct
from dataclasses import dataclass, field

import msgpack
from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from hip_engine.errors import CodeObjectError

EM_AMDGPU = 224
EF_AMDGPU_MACH_MASK = 0xFF
EF_AMDGPU_MACH_GFX942 = 0x4C
NT_AMDGPU_METADATA = 32
DESCRIPTOR_BYTES = 64
PRELOAD_LENGTH = 0x7F  # bits of the descriptor's preload field
PRELOAD_HEADER_BYTES = 256
MAX_IMAGE_BYTES = 1 << 31


class WrongProcessor(CodeObjectError):
    """Code for another GPU, which the message names."""


@dataclass(frozen=True)
class Argument:
    """One entry of a kernel's argument list: `kind` is the metadata's .value_kind."""

    name: str
    offset: int
    size: int
    kind: str

    @property
    def hidden(self) -> bool:
        return self.kind.startswith("hidden_")


@dataclass(frozen=True)
class KernelDescriptor:
    """The 64-byte `<kernel>.kd` and what the metadata says about the kernel.

    `entry` is the virtual address of the first instruction; where arguments are preloaded that is
    past the header for firmware that cannot. Register counts are granulated allocations, so they
    are upper bounds of what the code touches.
    """

    symbol: str
    entry: int
    size: int
    lds_bytes: int
    scratch_bytes: int
    kernarg_bytes: int
    rsrc1: int
    rsrc2: int
    rsrc3: int
    properties: int
    kernarg_preload: int
    arguments: tuple[Argument, ...]
    max_workgroup_size: int
    metadata: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def vgpr_count(self) -> int:
        return 8 * ((self.rsrc1 & 0x3F) + 1)

    @property
    def accum_offset(self) -> int:
        """First AccVGPR in the unified register file."""
        return 4 * ((self.rsrc3 & 0x3F) + 1)

    @property
    def uses_dynamic_stack(self) -> bool:
        return bool(self.properties & 1 << 11)

    @property
    def float_mode(self) -> int:
        """Initial MODE bits 7:0: rounding (3:0) and denormals (7:4), f32 before f16 and f64."""
        return (self.rsrc1 >> 12) & 0xFF


@dataclass(frozen=True)
class CodeObject:
    """A loaded ELF: `image` is its memory image from virtual address 0, before relocation."""

    sha256: str
    image: bytes
    kernels: dict[str, KernelDescriptor]
    functions: dict[str, tuple[int, int]]
    text: tuple[int, int]
    relocations: tuple[tuple[int, int, int], ...]
    data: bytes

    @classmethod
    def parse(cls, data: bytes) -> "CodeObject":
        """Read a code object.

        Raises:
          CodeObjectError: not an ELF, not for gfx942, truncated, or inconsistent.
        """
        if data[:4] != b"\x7fELF":
            raise CodeObjectError("not a code object: the file does not begin with the ELF magic")
        try:
            return cls._parse(data)
        except CodeObjectError:
            raise
        except (
            ELFError,
            ConstructError,
            struct.error,
            msgpack.UnpackException,
            ValueError,
        ) as error:
            raise CodeObjectError(f"corrupt code object: {error}") from error
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError, EOFError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CodeObjectError(f"corrupt code object ({reason})") from error

    @classmethod
    def _parse(cls, data: bytes) -> "CodeObject":
        elf = ELFFile(io.BytesIO(data))
        _check_target(elf)
        image = _memory_image(elf, data)
        symbols = _symbols(elf)
        metadata = _metadata(elf)
        kernels = {}
        for name, (address, _) in symbols.items():
            if name.endswith(".kd"):
                symbol = name.removesuffix(".kd")
                size = symbols.get(symbol, (0, 0))[1]
                kernels[symbol] = _descriptor(
                    symbol, size, address, image, metadata.get(symbol, {})
                )
        section = elf.get_section_by_name(".text")
        if section is None:
            raise CodeObjectError("corrupt code object: it has no .text section")
        text = (section["sh_addr"], section["sh_size"])
        functions = {n: s for n, s in symbols.items() if text[0] <= s[0] < text[0] + text[1]}
        for kernel in kernels.values():
            if not text[0] <= kernel.entry < text[0] + text[1]:
                raise CodeObjectError(
                    f"corrupt code object: kernel {kernel.symbol} starts outside .text"
                )
        return cls(
            sha256=hashlib.sha256(data).hexdigest(),
            image=image,
            kernels=kernels,
            functions=functions,
            text=text,
            relocations=_relocations(elf, len(image)),
            data=data,
        )


def _check_target(elf: ELFFile) -> None:
    if elf.elfclass != 64 or not elf.little_endian or elf["e_machine"] not in (224, "EM_AMDGPU"):
        raise CodeObjectError(
            f"not an AMD GPU code object: ELF{elf.elfclass} for machine {elf['e_machine']}"
        )
    machine = elf["e_flags"] & EF_AMDGPU_MACH_MASK
    if machine != EF_AMDGPU_MACH_GFX942:
        name = MACHINES.get(machine, f"machine 0x{machine:02x}")
        raise WrongProcessor(
            f"the code object is for {name}, not gfx942: rebuild it with --offload-arch=gfx942"
        )


def _memory_image(elf: ELFFile, data: bytes) -> bytes:
    loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
    size = max((s["p_vaddr"] + s["p_memsz"] for s in loads), default=0)
    if not 0 < size <= MAX_IMAGE_BYTES:
        raise CodeObjectError(f"corrupt code object: its segments span {size} bytes")
    image = bytearray(size)
    for s in loads:
        begin, length = s["p_offset"], s["p_filesz"]
        if begin + length > len(data) or length > s["p_memsz"]:
            raise CodeObjectError("truncated code object: a segment reaches past the end of file")
        image[s["p_vaddr"] : s["p_vaddr"] + length] = data[begin : begin + length]
    return bytes(image)


def _symbols(elf: ELFFile) -> dict[str, tuple[int, int]]:
    """name -> (virtual address, size) of every defined symbol."""
    symbols = {}
    for section in elf.iter_sections():
        if section["sh_type"] in ("SHT_SYMTAB", "SHT_DYNSYM"):
            for symbol in section.iter_symbols():
                if symbol["st_shndx"] != "SHN_UNDEF" and symbol.name:
                    symbols[symbol.name] = (symbol["st_value"], symbol["st_size"])
    return symbols


def _metadata(elf: ELFFile) -> dict[str, dict]:
    """Kernel symbol -> its metadata map; empty for hand-written objects without the note."""
    for segment in elf.iter_segments():
        if segment["p_type"] != "PT_NOTE":
            continue
        for note in segment.iter_notes():
            if note["n_name"] == "AMDGPU" and note["n_type"] in (NT_AMDGPU_METADATA, "NT_32"):
                raw = note["n_descdata"] if "n_descdata" in note else note["n_desc"]
                raw = raw.encode("latin-1") if isinstance(raw, str) else bytes(raw)
                tree = msgpack.unpackb(raw, strict_map_key=False)
                return {k[".name"]: k for k in tree.get("amdhsa.kernels", [])}
    return {}


def _descriptor(symbol, size, address, image, metadata) -> KernelDescriptor:
    raw = image[address : address + DESCRIPTOR_BYTES]
    if len(raw) < DESCRIPTOR_BYTES:
        raise CodeObjectError(f"truncated code object: the descriptor of {symbol} is cut off")
    lds, scratch, kernarg = struct.unpack_from("<III", raw, 0)
    (entry,) = struct.unpack_from("<q", raw, 16)
    rsrc3, rsrc1, rsrc2 = struct.unpack_from("<III", raw, 44)
    properties, preload = struct.unpack_from("<HH", raw, 56)
    if preload & PRELOAD_LENGTH:
        entry, size = entry + PRELOAD_HEADER_BYTES, max(size - PRELOAD_HEADER_BYTES, 0)
    arguments = tuple(
        Argument(a.get(".name", ""), a[".offset"], a[".size"], a[".value_kind"])
        for a in metadata.get(".args", [])
    )
    return KernelDescriptor(
        symbol=symbol,
        entry=address + entry,
        size=size,
        lds_bytes=lds,
        scratch_bytes=scratch,
        kernarg_bytes=kernarg,
        rsrc1=rsrc1,
        rsrc2=rsrc2,
        rsrc3=rsrc3,
        properties=properties,
        kernarg_preload=preload,
        arguments=arguments,
        max_workgroup_size=int(metadata.get(".max_flat_workgroup_size", 1024)),
        metadata=metadata,
    )


def _relocations(elf: ELFFile, image_bytes: int) -> tuple[tuple[int, int, int], ...]:
    """(address, type, addend + symbol value) of each dynamic relocation."""
    found = []
    for section in elf.iter_sections():
        if section["sh_type"] != "SHT_RELA":
            continue
        table = elf.get_section(section["sh_link"])
        for entry in section.iter_relocations():
            index = entry["r_info_sym"]
            symbol = table.get_symbol(index)["st_value"] if index else 0
            if not 0 <= entry["r_offset"] <= image_bytes - 8:
                raise CodeObjectError("corrupt code object: a relocation lies outside the image")
            found.append((entry["r_offset"], entry["r_info_type"], symbol + entry["r_addend"]))
    return tuple(found)


# EF_AMDGPU_MACH values of the targets that users are likely to hand us (LLVM BinaryFormat/ELF.h).
MACHINES = {
    0x2C: "gfx900",
    0x2F: "gfx906",
    0x30: "gfx908",
    0x3F: "gfx90a",
    0x33: "gfx1010",
    0x36: "gfx1030",
    0x40: "gfx940",
    0x4B: "gfx941",
    0x41: "gfx1100",
    0x4F: "gfx950",
    0x48: "gfx1200",
    0x4E: "gfx1201",
}
