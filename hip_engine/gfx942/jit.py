"""LLVM as the back end: IR to object code for this CPU, cached on disk by content."""

import ctypes
import functools
import hashlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import llvmlite.binding as llvm
import msgpack
import numpy as np

from hip_engine.errors import CodeObjectError
from hip_engine.gfx942 import layout
from hip_engine.gfx942.code_object import CodeObject, KernelDescriptor
from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.translate import Translation, translate
from hip_engine.toolchain import cache_dir, find_compiler, run, write_atomically

HERE = Path(__file__).resolve().parent
VERSIONS_KEPT = 4
# Modules that decide a kernel's object code; nothing else may start a new cache.
TRANSLATOR = (
    *("code_object", "disassembly", "effects", "emit", "flow", "jit", "layout", "translate"),
    *("wave", "isa/*"),
)
RUNTIME_FLAGS = ("-O3", "-march=native", "-ffreestanding", "-fPIC", "-ffp-contract=off", "-Wall")


def target_machine() -> llvm.TargetMachine:
    """Code generation for this CPU with full-width vectors; an engine owns the one it is given."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=1, jit=True, codemodel="jitdefault"
    )


@functools.cache
def fingerprint() -> bytes:
    """Digest of everything but the kernel that decides its object code."""
    digest = _digest(path for name in TRANSLATOR for path in HERE.glob(f"{name}.py"))
    digest.update(llvm.get_host_cpu_name().encode())
    digest.update(llvm.get_host_cpu_features().flatten().encode())
    digest.update(importlib.metadata.version("llvmlite").encode())
    return digest.digest()


def _digest(paths: Iterable[Path]):
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest


def cache() -> Path:
    """Folder of what this version of the translator made on this CPU, under today's cache_dir."""
    return _version_folder(cache_dir("gfx942"))


@functools.cache
def _version_folder(root: Path) -> Path:
    """A new version starts a new folder under `root`; of the others the latest few stay."""
    folder = root / fingerprint().hex()[:32]
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(root.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in others[VERSIONS_KEPT:]:
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
    return folder


class LoadedObject:
    """Object code mapped into this process; keeps its engine alive."""

    def __init__(self, data: bytes):
        # llvmlite's own memory manager keeps the sections of an object within reach of each other,
        # whatever else is mapped here (an arena of 192 GiB is).
        self._engine = llvm.create_mcjit_compiler(
            llvm.parse_assembly(""), target_machine(), use_lmm=True
        )
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(data))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        return self._engine.get_function_address(name)


@functools.cache
def runtime() -> LoadedObject:
    """The C runtime, compiled once a machine; its functions become visible to translated code."""
    compiler, version = find_compiler()
    key = _digest(HERE.glob("*.[ch]"))
    key.update(version.encode())
    path = cache() / f"runtime-{key.hexdigest()}.o"
    if not path.exists():
        write_atomically(path, _compile_runtime(compiler))
    loaded = LoadedObject(path.read_bytes())
    for name in _defined_functions(path.read_bytes()):
        llvm.add_symbol(name, loaded.address(name))
    return loaded


def _compile_runtime(compiler: str) -> bytes:
    defines = [f"-DOFFSET_{name}={value}" for name, value in layout.OFFSETS.items()]
    with tempfile.TemporaryDirectory(prefix="gfx942-runtime-") as folder:
        output = Path(folder) / "runtime.o"
        source = str(HERE / "runtime.c")
        done = run([compiler, *RUNTIME_FLAGS, *defines, "-c", source, "-o", str(output)])
        if done.returncode:
            raise CodeObjectError(f"{compiler} failed on the emulator's runtime: {done.stderr}")
        return output.read_bytes()


def _defined_functions(data: bytes) -> list[str]:
    import io

    from elftools.elf.elffile import ELFFile

    table = ELFFile(io.BytesIO(data)).get_section_by_name(".symtab")
    return [
        s.name
        for s in table.iter_symbols()
        if s["st_info"]["type"] == "STT_FUNC" and s["st_info"]["bind"] == "STB_GLOBAL"
    ]


class Compiled:
    """A kernel ready to run: the address of the piece of each block, and its translation facts."""

    def __init__(self, record: dict):
        runtime()
        self._object = LoadedObject(record["object"])
        addresses = {n: self._object.address(n) for n in dict.fromkeys(record["pieces"])}
        self.pieces = (ctypes.c_void_p * len(record["pieces"]))(
            *(addresses[n] for n in record["pieces"])
        )
        self.block_addresses = record["block_addresses"]
        self.block_classes = record["block_classes"]
        self.entry = record["entry"]
        self.sites = record["sites"]
        self.effects = np.frombuffer(record["effects"], np.uint8)


def compile_kernel(
    code: CodeObject, kernel: KernelDescriptor, instructions, observed: bool = False
) -> Compiled:
    """Translate and compile, or take the cached object. `instructions()` disassembles on demand.

    `observed` code calls the sanitizers' observer before each instruction.

    Raises:
      UnsupportedInstruction: the kernel needs something that is not implemented.
    """
    path = _path(code, kernel, observed)
    if path.exists():
        return Compiled(msgpack.unpackb(path.read_bytes(), strict_map_key=False))
    return Compiled(build(path, code, kernel, instructions(), observed))


def is_cached(code: CodeObject, kernel: KernelDescriptor, observed: bool = False) -> bool:
    return _path(code, kernel, observed).exists()


def _path(code: CodeObject, kernel: KernelDescriptor, observed: bool) -> Path:
    suffix = ".observed" if observed else ".kernel"
    return cache() / f"{_key(code, kernel)}{suffix}"


def build(path: Path, code, kernel, instructions: list[Instruction], observed: bool) -> dict:
    translation = translate(code, kernel, instructions, "piece", observed)
    record = {
        "object": emit_object(translation),
        "pieces": translation.pieces,
        "block_addresses": [a - kernel.entry for a in translation.block_addresses],
        "block_classes": translation.block_classes,
        "entry": translation.entry,
        "sites": translation.sites,
        "effects": translation.effects,
    }
    write_atomically(path, msgpack.packb(record))
    return record


def emit_object(translation: Translation) -> bytes:
    machine = target_machine()
    module = llvm.parse_assembly(translation.ir)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    return machine.emit_object(module)


def _key(code: CodeObject, kernel: KernelDescriptor) -> str:
    """Content of the kernel and of every device function it might call."""
    digest = hashlib.sha256()
    digest.update(repr((kernel.symbol, kernel.rsrc1, kernel.rsrc2, kernel.rsrc3)).encode())
    ranges = [(kernel.entry, kernel.size)] if kernel.size else [code.text]
    ranges += sorted(s for n, s in code.functions.items() if n not in code.kernels)
    for begin, size in ranges:
        digest.update(repr((begin - kernel.entry, size)).encode())
        digest.update(code.image[begin : begin + size])
    return digest.hexdigest()
