"""Every dense matrix instruction against mmasim 2.1.1 (a model probed from hardware), bit for bit.

Layouts are stated here once more, from the table of the design notes, in NumPy index arithmetic.
"""

import re

import numpy as np
import pytest
import torch
from mmasim.amd.sim import MFMA

from hip_engine.device import open_device
from hip_engine.gfx942.isa.mfma import SHAPES
from hip_engine.toolchain import find_compiler, run

LANES = 64
BITS = {"f16": 16, "bf16": 16, "xf32": 32, "f32": 32, "f64": 64, "fp8": 8, "bf8": 8, "i8": 8}
TORCH = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "xf32": torch.float32,
    "f32": torch.float32,
    "f64": torch.float64,
    "fp8": torch.float8_e4m3fnuz,
    "bf8": torch.float8_e5m2fnuz,
}
FLAGS = "-x hip --offload-arch=gfx942 --offload-device-only --no-gpu-bundle-output -nogpulib"
FLAGS += " -nogpuinc -O3"


class Shape:
    """M = N, K, blocks, element types and register counts of a mnemonic."""

    def __init__(self, name: str):
        found = re.match(r"(\w\d+)_(\d+)x\d+x(\d+)(?:_(\d+)b)?_(\w+?)(?:_(\w+))?$", name)
        out, size, k, blocks, a, b = found.groups()
        self.name, self.out, self.size, self.k = name, out, int(size), int(k)
        self.blocks, self.a, self.b = int(blocks or 1), a, b or a
        values = self.size * self.k * self.blocks
        self.a_words = values * BITS[self.a] // 32 // LANES
        self.b_words = values * BITS[self.b] // 32 // LANES
        self.c_words = self.size**2 * self.blocks * (2 if out == "f64" else 1) // LANES

    def operand_lanes(self):
        """(lane, part) of element [block, i, k] of A, and of [block, j, k] of B."""
        block, i, k = np.indices((self.blocks, self.size, self.k))
        per_lane = self.size * self.k * self.blocks // LANES
        lane = i + self.size * (block + self.blocks * (k // per_lane))
        return lane, k % per_lane

    def result_lanes(self):
        """(lane, element register) of [block, i, j] of C and D."""
        block, i, j = np.indices((self.blocks, self.size, self.size))
        if self.out == "f64":
            if self.size == 16:
                return 16 * (i % 4) + j, i // 4
            return 16 * i + 4 * block + j, 0 * i
        if self.size == 4:
            return 4 * block + j, i
        if self.size == 16:
            return 16 * (i // 4) + j, 4 * block + i % 4
        return (32 * (i // 4)) % 64 + j, 16 * block + 4 * (i // 8) + i % 4


ALL = [Shape(name) for name in SHAPES]


def source() -> str:
    def vector(n: int) -> str:
        return "int" if n == 1 else f"int __attribute__((ext_vector_type({n})))"

    text = ["#define __global__ __attribute__((global))"]
    for s in ALL:
        text.append(f"""
extern "C" __global__ void mfma_{s.name}(const int* a, const int* b, const int* c, int* d) {{
  typedef {vector(s.a_words)} A; typedef {vector(s.b_words)} B; typedef {vector(s.c_words)} C;
  int lane = __builtin_amdgcn_workitem_id_x();
  long t = (long)__builtin_amdgcn_workgroup_id_x() * 64 + lane;
  A x = ((const A*)a)[t]; B y = ((const B*)b)[t]; C z = ((const C*)c)[t]; C out;
  asm volatile("v_mfma_{s.name} %0, %1, %2, %3" : "=v"(out) : "v"(x), "v"(y), "v"(z));
  ((C*)d)[t] = out;
}}""")
    return "\n".join(text)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mfma")
    (folder / "k.hip").write_text(source())
    clang = find_compiler()[0]
    done = run([clang, *FLAGS.split(), "k.hip", "-o", "k.co"], cwd=str(folder))
    assert done.returncode == 0, done.stderr
    device = open_device("emulated")
    return device, device.load((folder / "k.co").read_bytes())


def launch(device, kernel, shape: Shape, tiles: int, a_words, b_words, c_words):
    """Run `tiles` wavefronts; the arrays are [tile, lane, word]."""
    host = [np.ascontiguousarray(x, np.uint32) for x in (a_words, b_words, c_words)]
    buffers = [device.allocate(x.nbytes, name) for x, name in zip(host, "abc", strict=True)]
    out = device.allocate(host[2].nbytes, "d")
    for buffer, x in zip(buffers, host, strict=True):
        device.write(buffer, x)
    record = device.launch(kernel, (tiles, 1, 1), (64, 1, 1), [*buffers, out])
    got = device.read(out, np.uint32, host[2].size).reshape(tiles, LANES, -1)
    for buffer in (*buffers, out):
        device.free(buffer)
    return got, record


def pack(shape: Shape, values: np.ndarray, ty: str) -> np.ndarray:
    """[tile, block, row, k] element bits to [tile, lane, word]."""
    bits = BITS[ty]
    word = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}[bits]
    lane, part = shape.operand_lanes()
    out = np.zeros((len(values), LANES, part.max() + 1), word)
    out[:, lane, part] = values.astype(word)
    return out.view(np.uint32).reshape(len(values), LANES, -1)


def pack_result(shape: Shape, values: np.ndarray) -> np.ndarray:
    lane, register = shape.result_lanes()
    word = np.uint64 if shape.out == "f64" else np.uint32
    out = np.zeros((len(values), LANES, register.max() + 1), word)
    out[:, lane, register] = values
    return out.view(np.uint32).reshape(len(values), LANES, -1)


def unpack_result(shape: Shape, words: np.ndarray) -> np.ndarray:
    lane, register = shape.result_lanes()
    word = np.uint64 if shape.out == "f64" else np.uint32
    return np.ascontiguousarray(words).view(word)[:, lane, register]


def random_bits(rng, shape, ty: str, kind: str) -> np.ndarray:
    """Element bits of one kind: any, ordinary, close to 1, subnormal or special exponents."""
    bits = BITS[ty]
    raw = (
        rng.integers(0, 1 << bits, shape, np.uint64, endpoint=False)
        if bits < 64
        else rng.integers(0, 2**64, shape, np.uint64)
    )
    if kind == "any" or ty == "i8":
        return raw
    fraction, exponent = {
        "f16": (10, 5), "bf16": (7, 8), "xf32": (23, 8), "f32": (23, 8), "f64": (52, 11),
        "fp8": (3, 4), "bf8": (2, 5),
    }[ty]  # fmt: skip
    ones = (1 << exponent) - 1
    keep = np.uint64((1 << fraction) - 1 | 1 << (fraction + exponent))
    if kind == "subnormal":
        field = rng.integers(0, 2, shape)
    elif kind == "special":
        field = rng.choice([0, 1, ones // 2, ones - 1, ones], shape)
    else:
        low, high = (
            (ones // 2 - 1, ones // 2 + 2) if kind == "close" else (ones // 3, 2 * ones // 3)
        )
        field = rng.integers(low, high, shape)
    return (raw & keep) | (field.astype(np.uint64) << np.uint64(fraction))


def to_torch(bits: np.ndarray, ty: str) -> torch.Tensor:
    width = {8: np.uint8, 16: np.int16, 32: np.int32, 64: np.int64}[BITS[ty]]
    signless = bits.astype(f"u{np.dtype(width).itemsize}").view(width)
    return torch.from_numpy(np.ascontiguousarray(signless)).view(TORCH[ty])


def expected(shape: Shape, a, b, c) -> np.ndarray:
    """mmasim on every tile and block; a, b are [..., row, k], c is [..., i, j] bits."""
    sim = MFMA("CDNA3", shape.name)
    ta, tb, tc = to_torch(a, shape.a), to_torch(b, shape.b), to_torch(c, shape.out)
    lead = (*a.shape[:-2], shape.size, shape.size, shape.k)
    wide_a = ta[..., :, None, :].expand(lead).contiguous()
    wide_b = tb[..., None, :, :].expand(lead).contiguous()
    out = sim.dpa(wide_a, wide_b, tc.clone())
    word = np.uint64 if shape.out == "f64" else np.uint32
    return out.numpy().view(word)


def is_nan(bits: np.ndarray) -> np.ndarray:
    return np.isnan(bits.view(np.float64 if bits.dtype == np.uint64 else np.float32))


KINDS = ("any", "ordinary", "close", "subnormal", "special")
FLOAT_SHAPES = [s for s in ALL if s.a != "i8"]


@pytest.mark.parametrize("shape", FLOAT_SHAPES, ids=lambda s: s.name)
def test_every_element_has_the_bits_of_mmasim(kernels, shape):
    device, loaded = kernels
    rng = np.random.default_rng(sum(shape.name.encode()))
    tiles = 6
    for kind in KINDS:
        a = random_bits(rng, (tiles, shape.blocks, shape.size, shape.k), shape.a, kind)
        b = random_bits(rng, (tiles, shape.blocks, shape.size, shape.k), shape.b, kind)
        c_kind = rng.choice([kind, "ordinary"])
        c = random_bits(rng, (tiles, shape.blocks, shape.size, shape.size), shape.out, c_kind)
        c[rng.random(c.shape) < 0.2] = 0
        words = pack(shape, a, shape.a), pack(shape, b, shape.b), pack_result(shape, c)
        out, record = launch(device, loaded[f"mfma_{shape.name}"], shape, tiles, *words)
        got, want = unpack_result(shape, out), expected(shape, a, b, c)
        differ = (got != want) & ~(is_nan(got) & is_nan(want))
        if shape.a in ("fp8", "bf8"):  # mmasim loses a NaN that reaches C between steps
            a_nan, b_nan = ((x == 0x80).any(-1) for x in (a, b))
            tainted = a_nan[..., :, None] | b_nan[..., None, :] | is_nan(c.astype(np.uint32))
            assert (is_nan(got) == tainted).all()
            differ &= ~tainted
        assert differ.sum() == 0, _first(kind, differ, got, want, a, b, c)
        assert record.executed["mfma"] == tiles


def _first(kind, differ, got, want, a, b, c) -> str:
    at = tuple(int(x) for x in np.argwhere(differ)[0])
    tile, block, i, j = at
    return (
        f"{kind}: {differ.sum()} of {differ.size} differ, first at {at}: got {got[at]:#x}, want "
        f"{want[at]:#x}; a {[hex(x) for x in a[tile, block, i]]} b "
        f"{[hex(x) for x in b[tile, block, j]]} c {c[at]:#x}"
    )


@pytest.mark.parametrize("shape", [s for s in ALL if s.a == "i8"], ids=lambda s: s.name)
def test_integer_products_are_exact(kernels, shape):
    device, loaded = kernels
    rng = np.random.default_rng(7)
    a, b = (rng.integers(-128, 128, (4, shape.blocks, shape.size, shape.k)) for _ in range(2))
    c = rng.integers(-(2**31), 2**31, (4, shape.blocks, shape.size, shape.size))
    want = (np.einsum("tbik,tbjk->tbij", a, b) + c).astype(np.uint32)
    words = pack(shape, a & 255, "i8"), pack(shape, b & 255, "i8")
    c_words = pack_result(shape, c.astype(np.uint32))
    out, _ = launch(device, loaded[f"mfma_{shape.name}"], shape, 4, *words, c_words)
    np.testing.assert_array_equal(unpack_result(shape, out), want)


def test_a_sequential_fma_chain_is_not_an_mi300x():
    """The gate above can fail: an f32 fma chain gets about half of ordinary elements wrong."""
    shape = next(s for s in ALL if s.name == "f32_16x16x16_f16")
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((1, 1, 16, 16)).astype(np.float16) for _ in range(2))
    c = np.zeros((1, 1, 16, 16), np.uint32)
    want = expected(shape, a.view(np.uint16), b.view(np.uint16), c).view(np.float32)
    acc = np.zeros((1, 1, 16, 16), np.float32)
    for k in range(16):
        product = a[..., :, None, k].astype(np.float64) * b[..., None, :, k].astype(np.float64)
        acc = (acc.astype(np.float64) + product).astype(np.float32)
    assert (acc != want).sum() > want.size // 4


def test_floor_is_asymmetric_in_sign(kernels):
    """dot = 1 with c = -2^-40 rounds below 1, with +2^-40 it is 1 (numerics notes, section 1)."""
    device, loaded = kernels
    shape = next(s for s in ALL if s.name == "f32_16x16x16_f16")
    a = np.zeros((1, 1, 16, 16), np.uint64)
    a[..., 0] = 0x3C00
    for c_value, want in ((-(2.0**-40), 0x3F7FFFFF), (2.0**-40, 0x3F800000)):
        c = np.full((1, 1, 16, 16), c_value, np.float32).view(np.uint32)
        words = pack(shape, a, "f16"), pack(shape, a, "f16"), pack_result(shape, c)
        out, _ = launch(device, loaded[f"mfma_{shape.name}"], shape, 1, *words)
        assert (unpack_result(shape, out) == want).all()
