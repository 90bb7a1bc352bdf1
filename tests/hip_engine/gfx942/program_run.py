"""Random programs on both machines: render, compile, run, compare, and reduce what fails."""

import contextlib
import copy
import ctypes
import os
from pathlib import Path
from unittest import mock

import numpy as np

from hip_engine import toolchain
from hip_engine.errors import DeviceFault
from hip_engine.gfx942.device import EmulatedDevice
from tests.hip_engine.gfx942 import objects
from tests.hip_engine.gfx942.program import VECTORS, Generator, Program, Statement

HEADER = (Path(__file__).parent / "program.h").read_text()
COMMON = ("-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-w")
HOST_FLAGS = (
    *("-x", "c++", "-std=c++17", "-shared", "-fPIC", "-O1", "-march=native", *COMMON),
    *("-Xclang", "-ffloat16-excess-precision=none"),
)
LEVELS = ("-O3", "-O1", "-O2", "-O3", "-Os", "-O2")
BATCH = 25
GROUPS = 2
INPUT_BYTES = 4096


def render(program: Program) -> str:
    """The program's phases, its kernel and its host function, in one namespace."""
    name, variables = f"p{program.seed}", program.variables
    fields = "".join(f"  {ty} {v};\n" for v, ty in variables.items())
    out = [
        f"namespace {name} {{\nenum {{ BLOCK = {program.block} }};",
        f"struct State {{\n{fields}  i32 line[5];\n}};",
        f"struct Context {{\n  const u8* in;\n  u32* counts32;\n  u64* counts64;\n  u32 t, g;\n"
        f"  {program.lds[0]}* lds0;\n  {program.lds[1]}* lds1;\n}};",
        "FN void start(State& s, const Context& c) {",
    ]
    for position, (v, ty) in enumerate(variables.items()):
        at = f"c.g * 777 + c.t * 7 + {97 * position}"
        values = [f"load<{ELEMENT[ty]}>(c.in, {at} + {i})" for i in range(2)]
        both = f"({ty}){{{values[0]}, {values[1]}}}"
        out.append(f"s.{v} = {both if ty in VECTORS else values[0]};")
    out.append("for (u32 i = 0; i < 5; i++) s.line[i] = load<i32>(c.in, c.t + 5 * i);\n}")
    for number, phase in enumerate(program.phases):
        mark = "__attribute__((noinline)) " if program.noinline[number] else ""
        out.append(f"PHASE {mark}void phase{number}(State& s, const Context& c) {{")
        out += [line for statement in phase for line in statement.lines()]
        out.append("}")
        shuffle = program.shuffles[number]
        if shuffle:
            for what in ("value", "index"):
                out.append(f"FN u32 {what}{number}(State& s, const Context& c) {{")
                out.append(f"return {getattr(shuffle, what)};\n}}")
    out += [finish(variables), "#ifdef __AMDGCN__", kernel(program), "#else", host(program)]
    return "\n".join([*out, "#endif\n}\n"])


ELEMENT = {"h2": "f16", "s2": "i16", "f2": "f32"} | {
    t: t for t in ("i8 u8 i16 u16 i32 u32 i64 u64 f16 bf16 f32 f64".split())
}


def results(variables: dict[str, str]) -> list[str]:
    parts = [
        f"s.{v}{part}"
        for v, ty in variables.items()
        for part in ((".x", ".y") if ty in VECTORS else ("",))
    ]
    return [*parts, *(f"s.line[{i}]" for i in range(5))]


def finish(variables: dict[str, str]) -> str:
    parts = results(variables)
    stores = "".join(f"out[{i}] = bits({part});\n" for i, part in enumerate(parts))
    return f"FN void finish(State& s, u64* out) {{\n{stores}}}"


PARAMETERS = "u64* out, const u8* in, u32* counts32, u64* counts64"


def kernel(program: Program) -> str:
    body = []
    for number, shuffle in enumerate(program.shuffles):
        body.append(f"phase{number}(s, c);")
        if shuffle:
            arguments = f"value{number}(s, c), index{number}(s, c)"
            body.append(f"{shuffle.target} ^= {shuffle.kind}<{shuffle.constant}>({arguments});")
        body.append("barrier();")
    count = len(results(program.variables))
    return f"""extern "C" __attribute__((global, amdgpu_flat_work_group_size(1, BLOCK)))
void p{program.seed}({PARAMETERS}) {{
SHARED {program.lds[0]} lds0[BLOCK];
SHARED {program.lds[1]} lds1[BLOCK];
State s;
const Context c = {{in, counts32, counts64, __builtin_amdgcn_workitem_id_x(),
                   __builtin_amdgcn_workgroup_id_x(), lds0, lds1}};
start(s, c);
{chr(10).join(body)}
finish(s, out + (c.g * BLOCK + c.t) * {count});
}}"""


def host(program: Program) -> str:
    each = "for (u32 t = 0; t < BLOCK; t++)"
    body = []
    for number, shuffle in enumerate(program.shuffles):
        body.append(f"{each} phase{number}(s[t], c[t]);")
        if shuffle:
            body.append(
                f"""{each} v[t] = value{number}(s[t], c[t]), x[t] = index{number}(s[t], c[t]);
for (u32 w = 0; w < BLOCK; w += 64)
{shuffle.kind}<{shuffle.constant}>(v + w, x + w, r + w, BLOCK - w < 64 ? BLOCK - w : 64);
{each} {shuffle.target.replace("s.", "s[t].")} ^= r[t];"""
            )
    count = len(results(program.variables))
    return f"""extern "C" void p{program.seed}({PARAMETERS}) {{
static State s[BLOCK];
u32 v[BLOCK + 64] = {{}}, x[BLOCK + 64] = {{}}, r[BLOCK + 64];
{program.lds[0]} lds0[BLOCK];
{program.lds[1]} lds1[BLOCK];
for (u32 g = 0; g < {GROUPS}; g++) {{
struct {{ Context at[BLOCK]; Context& operator[](u32 t) {{ return at[t]; }} }} c;
{each} c[t] = Context{{in, counts32, counts64, t, g, lds0, lds1}};
{each} start(s[t], c[t]);
{chr(10).join(body)}
{each} finish(s[t], out + (g * BLOCK + t) * {count});
}}
}}"""


def inputs(seed: int) -> np.ndarray:
    """Bytes that are plausible numbers of every type: edges, small, random."""
    rng = np.random.default_rng([seed, 7])
    raw = rng.integers(0, 256, INPUT_BYTES, np.uint8)
    raw[1024:2048] = (rng.standard_normal(256) * 100).astype(np.float32).view(np.uint8)
    raw[2048:2560] = rng.standard_normal(256).astype(np.float16).view(np.uint8)
    raw[2560:3072] = rng.integers(-40, 40, 128, np.int32).view(np.uint8)
    raw[3072:3584] = (rng.standard_normal(64) * 1e3).view(np.uint8)
    return raw


def batch(programs: list[Program], level: str) -> tuple[bytes, str]:
    """A code object and the path of a host library with every program."""
    source = HEADER + "\n".join(render(p) for p in programs)
    device = objects.build(source, (*objects.HIP_FLAGS, level, *COMMON))
    objects.build(source, HOST_FLAGS)
    return device, str(objects.cached(source, HOST_FLAGS))


def differences(device, programs: list[Program], level: str) -> dict[int, str]:
    """Seed -> what differs between the two machines, for the programs that differ."""
    code, library = batch(programs, level)
    loaded, native = device.load(code), ctypes.CDLL(library)
    found = {}
    for program in programs:
        symbol = f"p{program.seed}"
        names = results(program.variables)
        shape = (GROUPS, program.block, len(names))
        ref = [np.zeros(shape, np.uint64), inputs(program.seed), *counts()]
        getattr(native, symbol)(*(ctypes.c_void_p(a.ctypes.data) for a in ref))
        try:
            got = launched(device, loaded[symbol], program, shape)
        except DeviceFault as fault:
            found[program.seed] = str(fault)
            continue
        wrong = np.argwhere(ref[0] != got[0])
        if wrong.size:
            at = tuple(wrong[0])
            found[program.seed] = (
                f"{names[at[2]]} of group {at[0]}, item {at[1]} (and {len(wrong) - 1} more): "
                f"host 0x{ref[0][at]:x}, gfx942 0x{got[0][at]:x}"
            )
        elif any((r != g).any() for r, g in zip(ref[2:], got[1:], strict=True)):
            found[program.seed] = f"atomics: host {ref[2:]}, gfx942 {got[1:]}"
    return found


def counts() -> list[np.ndarray]:
    return [~np.zeros(4, np.uint32), ~np.zeros(4, np.uint64)]


def launched(device, entry, program: Program, shape) -> list[np.ndarray]:
    arrays = [np.zeros(shape, np.uint64), inputs(program.seed), *counts()]
    buffers = [device.allocate(a.nbytes, f"argument {i}") for i, a in enumerate(arrays)]
    try:
        for buffer, array in zip(buffers, arrays, strict=True):
            device.write(buffer, array)
        device.launch(entry, (GROUPS, 1, 1), (program.block, 1, 1), buffers)
        return [
            device.read(buffers[i], arrays[i].dtype, arrays[i].size).reshape(arrays[i].shape)
            for i in (0, 2, 3)
        ]
    finally:
        for buffer in buffers:
            device.free(buffer)


def level_of(seed: int) -> str:
    """One level a batch, but a few programs unoptimised, which are ten times as long."""
    return "-O0" if seed % 50 == 0 else LEVELS[seed // BATCH % len(LEVELS)]


def run_batch(number: int) -> dict[int, str]:
    """Differences of the programs of one batch, by seed."""
    device = EmulatedDevice(threads=1)
    by_level: dict[str, list[Program]] = {}
    for seed in range(number * BATCH, (number + 1) * BATCH):
        by_level.setdefault(level_of(seed), []).append(Generator(seed).program())
    found = {}
    for level, programs in by_level.items():
        found |= differences(device, programs, level)
    return found


@contextlib.contextmanager
def only_llvm(version: int):
    """The distribution's clang and llvm-objdump of one version, and no other."""
    found = (toolchain.find_compiler, toolchain.find_objdump)
    with (
        mock.patch.object(toolchain, "VERSIONS", (version,)),
        mock.patch.dict(os.environ, ROCM_PATH=os.devnull),
    ):
        for lookup in found:
            lookup.cache_clear()
        try:
            yield
        finally:
            for lookup in found:
                lookup.cache_clear()


def run_batch_of_llvm_22(number: int) -> dict[int, str]:
    with only_llvm(22):
        return run_batch(number)


# Reduction.


def minimal(seed: int) -> str:
    """The program of a failing seed with every statement dropped that need not be there."""
    level = level_of(seed)
    device, program = EmulatedDevice(threads=1), Generator(seed).program()

    def fails(candidate: Program) -> bool:
        try:
            return bool(differences(device, [candidate], level))
        except AssertionError:
            return False  # it no longer compiles

    changed = True
    while changed:
        changed = False
        for candidate in smaller(program):
            if fails(candidate):
                program, changed = candidate, True
                break
    what = differences(device, [program], level)
    return f"{level}: {what.get(seed)}\n{render(program)}"


def smaller(program: Program):
    """Copies with one statement dropped, or one replaced by its children, or a shuffle dropped."""
    for number, shuffle in enumerate(program.shuffles):
        if shuffle:
            candidate = copy.deepcopy(program)
            candidate.shuffles[number] = None
            yield candidate
    for path in paths(program.phases):
        for unwrap in (False, True):
            candidate = copy.deepcopy(program)
            statements, index = locate(candidate.phases, path)
            inside = statements[index].children + statements[index].otherwise
            if not unwrap or inside:
                statements[index : index + 1] = inside if unwrap else []
                yield candidate


def paths(phases: list[list[Statement]]):
    def within(statements, prefix):
        for i, statement in enumerate(statements):
            yield (*prefix, i)
            yield from within(statement.children, (*prefix, i, 0))
            yield from within(statement.otherwise, (*prefix, i, 1))

    for number, phase in enumerate(phases):
        yield from within(phase, (number,))


def locate(phases, path) -> tuple[list[Statement], int]:
    number, *rest = path
    statements = phases[number]
    while len(rest) > 1:
        index, side, *rest = rest
        statements = statements[index].otherwise if side else statements[index].children
    return statements, rest[0]
