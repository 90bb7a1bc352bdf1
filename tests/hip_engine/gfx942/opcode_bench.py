"""Many opcodes in one assembled kernel: sources in, results out, under partial EXEC."""

from dataclasses import dataclass

import numpy as np

from tests.hip_engine.gfx942 import objects

LANES = 64
GROUPS = 12
SOURCES = 4  # src0, src1, src2 and the destination's old value, 8 bytes a lane each
GROUP_BYTES = 4096

KINDS = {
    "u16": np.uint16,
    "i16": np.int16,
    "f16": np.float16,
    "u32": np.uint32,
    "i32": np.int32,
    "f32": np.float32,
    "u64": np.uint64,
    "i64": np.int64,
    "f64": np.float64,
}
FLOAT_EDGES = (0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e4, 2.0, -3.0, np.inf, -np.inf, np.nan)
START = """
  s_load_dwordx4 s[4:7], s[0:1], 0x0
  s_mul_i32 s3, s2, 0x1000
  s_waitcnt lgkmcnt(0)
  s_add_u32 s4, s4, s3
  s_addc_u32 s5, s5, 0
  s_mul_i32 s3, s2, {out_bytes}
  s_add_u32 s6, s6, s3
  s_addc_u32 s7, s7, 0
  s_load_dwordx4 s[8:11], s[4:5], 0x800
  s_load_dwordx8 s[16:23], s[4:5], 0x810
  v_and_b32 v1, 63, v0
  v_lshlrev_b32 v1, 3, v1
  global_load_dwordx2 v[10:11], v1, s[4:5]
  global_load_dwordx2 v[12:13], v1, s[4:5] offset:512
  global_load_dwordx2 v[14:15], v1, s[4:5] offset:1024
  global_load_dwordx2 v[16:17], v1, s[4:5] offset:1536
  s_waitcnt vmcnt(0) lgkmcnt(0)
"""
EACH = """
  v_mov_b32 v20, v16
  v_mov_b32 v21, v17
  s_mov_b64 vcc, s[10:11]
  s_mov_b64 s[14:15], s[10:11]
  s_mov_b64 s[24:25], s[16:17]
  s_cmp_lg_u32 s22, 0
  s_mov_b64 exec, s[8:9]
  {text}
  s_cselect_b32 s26, 1, 0
  s_mov_b64 s[28:29], exec
  s_mov_b64 exec, -1
  global_store_dwordx2 v1, v[20:21], s[6:7]
  v_mov_b32 v22, {low}
  v_mov_b32 v23, {high}
  v_writelane_b32 v22, s24, 1
  v_writelane_b32 v23, s25, 1
  v_writelane_b32 v22, s26, 2
  v_writelane_b32 v22, s28, 3
  v_writelane_b32 v23, s29, 3
  global_store_dwordx2 v1, v[22:23], s[6:7] offset:512
  s_add_u32 s6, s6, 0x400
  s_addc_u32 s7, s7, 0
"""


@dataclass(frozen=True)
class Inputs:
    """Raw 64-bit sources, one row a workgroup, and the scalar inputs of each workgroup."""

    lanes: np.ndarray  # uint64 [GROUPS, SOURCES, LANES]
    exec: np.ndarray  # uint64 [GROUPS]
    vcc: np.ndarray
    scalars: np.ndarray  # uint64 [GROUPS, 4]: s[16:17] (old destination), s[18:19], s[20:21], SCC

    def source(self, number: int, kind: str) -> np.ndarray:
        """Source `number` as [GROUPS, LANES] of a lane type (its low bits)."""
        return low_bits(self.lanes[:, number], kind)


def low_bits(raw: np.ndarray, kind: str) -> np.ndarray:
    dtype = np.dtype(KINDS[kind])
    return raw.astype(f"u{dtype.itemsize}").view(dtype)


def raw_bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)


def edges(rng, kind: str, shape) -> np.ndarray:
    """Half edge values, a quarter of moderate ones, a quarter random bits; as raw uint64."""
    dtype = np.dtype(KINDS[kind])
    bits = 8 * dtype.itemsize
    raw = rng.integers(0, 2**64, shape, np.uint64)
    noise = low_bits(raw, kind)
    if kind[0] == "f":
        info = np.finfo(dtype)
        extremes = (info.max, -info.max, info.tiny, info.smallest_subnormal, 3.3, 1.0 - info.epsneg)
        pool = np.array([*FLOAT_EDGES, *extremes], dtype)
        moderate = (rng.standard_normal(shape) * 50).astype(dtype)
    else:
        top = 1 << (bits - 1)
        pool = np.array([0, 1, 2, 3, 31, 32, 63, top - 1, top, 2 * top - 1, top + 1], np.uint64)
        pool = low_bits(pool, kind)
        moderate = low_bits(rng.integers(0, 2**64, shape, np.uint64) % np.uint64(100), kind)
    choice = rng.integers(0, 4, shape)
    values = np.where(choice < 2, rng.choice(pool, shape), np.where(choice == 2, moderate, noise))
    high = raw if bits == 64 else raw >> np.uint64(bits) << np.uint64(bits)
    return raw_bits(values.astype(dtype)) | (high if bits < 64 else np.uint64(0))


def inputs(seed: int, kinds: tuple[str, ...]) -> Inputs:
    rng = np.random.default_rng([seed, 42])
    lanes = np.stack(
        [
            edges(rng, kinds[i] if i < len(kinds) else "u32", (GROUPS, LANES))
            for i in range(SOURCES)
        ],
        1,
    )
    masks = rng.integers(0, 2**64, (2, GROUPS), np.uint64)
    masks[0, :3] = (2**64 - 1, 0, 1 << 63)
    scalars = np.stack(
        [edges(rng, kinds[i % len(kinds)] if kinds else "u64", (GROUPS,)) for i in range(4)], 1
    )
    scalars[:, 3] &= np.uint64(1)
    return Inputs(lanes, masks[0], masks[1], scalars)


def pack(data: Inputs) -> np.ndarray:
    raw = np.zeros((GROUPS, GROUP_BYTES // 8), np.uint64)
    raw[:, :256] = data.lanes.reshape(GROUPS, 256)
    raw[:, 256], raw[:, 257] = data.exec, data.vcc
    raw[:, 258:262] = data.scalars
    return raw


@dataclass(frozen=True)
class Outcome:
    """What one instruction left: destination lanes, masks, scalar destination, SCC and EXEC."""

    lanes: np.ndarray  # uint64 [GROUPS, LANES]
    mask: np.ndarray  # uint64 [GROUPS]: vcc, or s[14:15]
    scalar: np.ndarray  # s[24:25]
    scc: np.ndarray
    exec: np.ndarray


def execute(device, texts: list[str], data: Inputs, scratch: int = 0) -> list[Outcome]:
    """Run every instruction on the same inputs; `s[14:15]` in a text makes that the mask read."""
    body = START.format(out_bytes=1024 * len(texts))
    for text in texts:
        low, high = ("s14", "s15") if "s[14:15]" in text else ("vcc_lo", "vcc_hi")
        body += EACH.format(text=text, low=low, high=high)
    kernel = objects.kernel_text("opcodes", body, pointers=2, lds=16384, scratch=scratch)
    entry = device.load(objects.kernels(kernel))["opcodes"]
    raw = pack(data)
    size = GROUPS * len(texts) * 1024
    buffers = [device.allocate(raw.nbytes, "sources"), device.allocate(size, "results")]
    try:
        device.write(buffers[0], raw)
        device.launch(entry, (GROUPS, 1, 1), (LANES, 1, 1), buffers)
        out = device.read(buffers[1], np.uint64, size // 8).reshape(GROUPS, len(texts), 2, LANES)
    finally:
        for buffer in buffers:
            device.free(buffer)
    return [
        Outcome(
            lanes=out[:, i, 0],
            mask=out[:, i, 1, 0],
            scalar=out[:, i, 1, 1],
            scc=out[:, i, 1, 2] & np.uint64(0xFFFFFFFF),
            exec=out[:, i, 1, 3],
        )
        for i in range(len(texts))
    ]


def lane_bits(mask: np.ndarray) -> np.ndarray:
    """uint64 [GROUPS] to bool [GROUPS, LANES]."""
    return (mask[:, None] >> np.arange(LANES, dtype=np.uint64) & np.uint64(1)).astype(bool)


def mask_of(lanes: np.ndarray) -> np.ndarray:
    return (lanes.astype(np.uint64) << np.arange(LANES, dtype=np.uint64)).sum(1, dtype=np.uint64)
