"""8-bit floats (FNUZ) against ml_dtypes: every code outward, roundings and random bits inward."""

import dataclasses
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from tests.hip_engine.gfx942 import exact
from tests.hip_engine.gfx942.opcode_bench import GROUPS, LANES, execute, inputs, lane_bits, low_bits

FORMATS = {"fp8": ml_dtypes.float8_e4m3fnuz, "bf8": ml_dtypes.float8_e5m2fnuz}
SHIFTS = {"BYTE_0": 0, "BYTE_1": 8, "BYTE_2": 16, "BYTE_3": 24, "WORD_0": 0, "WORD_1": 16}
SHAPE = (GROUPS, LANES)
EXCHANGED = np.arange(LANES) ^ 1


def with_sources(seed: int, *sources):
    """Bench inputs whose first sources are these dwords."""
    data = inputs(seed, ("u32", "u32"))
    lanes = data.lanes.copy()
    for i, source in enumerate(sources):
        lanes[:, i] = source.astype(np.uint64)
    return dataclasses.replace(data, lanes=lanes)


def every_code() -> np.ndarray:
    """Dwords that have every one of the 256 codes in each of their bytes."""
    k = np.arange(GROUPS * LANES).reshape(SHAPE)
    return sum((k * (2 * i + 1) + 17 * i) % 256 << 8 * i for i in range(4)).astype(np.uint32)


def hard_floats(seed: int) -> np.ndarray:
    """Around the range of 8-bit floats: random, exact ties, their neighbours, special values."""
    rng = np.random.default_rng([seed, 8])
    size = np.ldexp(rng.uniform(1, 2, SHAPE), rng.integers(-34, 19, SHAPE)).astype(np.float32)
    bits = size.view(np.uint32)
    dropped = rng.choice([20, 21], SHAPE).astype(np.uint32)
    tie = bits >> dropped << dropped | np.uint32(1) << dropped - np.uint32(1)
    near = tie + rng.choice([0, 0, 1, 0xFFFFFFFF], SHAPE).astype(np.uint32)
    values = np.where(rng.random(SHAPE) < 0.5, bits, near).view(np.float32)
    few = np.array(
        [0, 240, 247.99, 248, 256, 57344, 61440, 61439, 65536, 2**-10, 2**-11, 2**-17, 2**-18]
        + [3 * 2**-11, 3 * 2**-18, 1e-45, 1e-40, 3e38, np.inf, np.nan, 2**-30, 2**-11 * 1.001],
        np.float32,
    )
    values[:, : len(few)] = few
    return np.where(rng.random(SHAPE) < 0.5, -values, values).astype(np.float32)


def decoded(codes: np.ndarray, name: str) -> np.ndarray:
    return codes.astype(np.uint8).view(FORMATS[name]).astype(np.float32)


def encoded(values: np.ndarray, name: str) -> np.ndarray:
    """Nearest even; too large is NaN, which is 0x80 as there is no -0."""
    with np.errstate(all="ignore"):
        return values.astype(FORMATS[name]).view(np.uint8).astype(np.uint32)


def check(ref: np.ndarray, got: np.ndarray, data, text: str, written=None) -> None:
    """`ref` in the lanes written (EXEC), else the old value; floats where both are NaN agree."""
    active = lane_bits(data.exec) if written is None else written
    old = data.lanes[:, 3].astype(ref.dtype if ref.dtype.kind == "u" else f"u{ref.itemsize}")
    want = np.where(active, ref.view(old.dtype), old)
    have = got.astype(old.dtype)
    good = want == have
    if ref.dtype.kind == "f":
        good |= np.isnan(want.view(ref.dtype)) & np.isnan(have.view(ref.dtype))
    at = tuple(np.argwhere(~good)[0]) if not good.all() else None
    assert at is None, (
        text,
        [hex(int(v)) for v in (*data.lanes[at[0], :2, at[1]], want[at], have[at])],
    )


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_becomes_its_float(device, name):
    data = with_sources(21, every_code())
    x = data.source(0, "u32")
    forms = {f"v_cvt_f32_{name} v20, v10": lambda x: x}
    for select, shift in SHIFTS.items():
        forms[f"v_cvt_f32_{name}_sdwa v20, v10 src0_sel:{select}"] = lambda x, s=shift: x >> s
    forms[f"v_cvt_f32_{name}_sdwa v20, v10 src0_sel:DWORD"] = lambda x: x
    for text, got in zip(forms, execute(device, list(forms), data), strict=True):
        ref = decoded(forms[text](x) & np.uint32(255), name)
        check(ref, low_bits(got.lanes, "u32"), data, text)


@pytest.mark.parametrize("name", FORMATS)
def test_output_modifiers_and_lane_moves_of_an_unpacked_code(device, name):
    data = with_sources(22, every_code())
    value = decoded(data.source(0, "u32") & np.uint32(255), name)
    active = lane_bits(data.exec)
    move = f"v_cvt_f32_{name}_dpp v20, v10 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf"
    clamped = np.where(np.isnan(value), 0, np.clip(value, 0, 1)).astype(np.float32)
    forms = {
        f"v_cvt_f32_{name}_e64 v20, v10 mul:2": (value * np.float32(2), active),
        f"v_cvt_f32_{name}_e64 v20, v10 clamp": (clamped, active),
        move: (value[:, EXCHANGED], active & active[:, EXCHANGED]),
    }
    for text, got in zip(forms, execute(device, list(forms), data), strict=True):
        ref, written = forms[text]
        check(ref, low_bits(got.lanes, "u32"), data, text, written)


@pytest.mark.parametrize("name", FORMATS)
def test_two_codes_become_two_floats(device, name):
    data = with_sources(23, every_code())
    x = data.source(0, "u32")
    forms = {
        f"v_cvt_pk_f32_{name} v[20:21], v10": 0,
        f"v_cvt_pk_f32_{name}_e64 v[20:21], v10": 0,
        f"v_cvt_pk_f32_{name}_sdwa v[20:21], v10 src0_sel:WORD_0": 0,
        f"v_cvt_pk_f32_{name}_sdwa v[20:21], v10 src0_sel:WORD_1": 16,
    }
    active = lane_bits(data.exec)
    for text, got in zip(forms, execute(device, list(forms), data), strict=True):
        for part in (0, 1):
            codes = x >> np.uint32(forms[text] + 8 * part) & np.uint32(255)
            ref = decoded(codes, name)
            have, old = (
                (raw >> np.uint64(32 * part)).astype(np.uint32)
                for raw in (got.lanes, data.lanes[:, 3])
            )
            good = np.where(active, have == ref.view(np.uint32), have == old)
            good |= active & np.isnan(ref) & np.isnan(have.view(np.float32))
            assert good.all(), text


@pytest.mark.parametrize("name", FORMATS)
def test_two_floats_become_codes_in_one_half_of_the_destination(device, name):
    data = with_sources(24, hard_floats(1).view(np.uint32), hard_floats(2).view(np.uint32))
    x, y = (data.source(i, "f32") for i in (0, 1))
    old = data.source(3, "u32")
    forms = {
        f"v_cvt_pk_{name}_f32 v20, v10, v12": (x, y, 0),
        f"v_cvt_pk_{name}_f32 v20, v10, v12 op_sel:[0,0,1]": (x, y, 16),
        f"v_cvt_pk_{name}_f32 v20, -v10, |v12|": (-x, np.abs(y), 0),
        f"v_cvt_pk_{name}_f32 v20, v10, 1.0 op_sel:[0,0,1]": (x, np.ones_like(y), 16),
    }
    for text, got in zip(forms, execute(device, list(forms), data), strict=True):
        a, b, shift = forms[text]
        pair = encoded(a, name) | encoded(b, name) << np.uint32(8)
        ref = old & ~(np.uint32(0xFFFF) << np.uint32(shift)) | pair << np.uint32(shift)
        check(ref, low_bits(got.lanes, "u32"), data, text)


def randomly_rounded(x: float, noise: int, name: str) -> float:
    """The multiple of the format's step below |x| or above it: the random bits, as a fraction
    with as many bits as the format drops (31 at most), are added to the remainder and carry.
    """
    mantissa, bias = {"fp8": (3, 8), "bf8": (2, 16)}[name]
    size = Fraction(abs(x))
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    least = 1 - bias
    dropped = min(23 - mantissa + max(0, least - exponent), 31)
    step = Fraction(2) ** (max(exponent, least) - mantissa)
    units = int(size / step * 2**dropped)
    whole = units + (noise >> (32 - dropped)) >> dropped
    return float(whole * step) * (-1 if x < 0 else 1)


@pytest.mark.parametrize("name", FORMATS)
def test_random_bits_decide_the_rounding_of_a_code(device, name):
    rng = np.random.default_rng(9)
    noise = rng.integers(0, 2**32, SHAPE, np.uint32)
    noise[:, ::5] = rng.choice(np.array([0, 2**32 - 1, 2**31, 0xFFF, 0x7FF], np.uint32), (12, 13))
    data = with_sources(25, hard_floats(3).view(np.uint32), noise)
    x, old = data.source(0, "f32"), data.source(3, "u32")
    tiny = np.finfo(np.float32).tiny
    rounded = x.copy()
    for at in np.ndindex(SHAPE):
        if np.isfinite(x[at]) and x[at]:
            small = abs(x[at]) < tiny
            with np.errstate(over="ignore"):
                value = 0 if small else randomly_rounded(float(x[at]), int(noise[at]), name)
                rounded[at] = value
    codes = encoded(rounded, name)
    whole = ~np.isnan(decoded(codes, name))
    assert (decoded(codes, name) == rounded)[whole].all() and (codes != encoded(x, name)).any()
    picks = [(0, 0), (1, 0), (0, 1), (1, 1)]
    forms = {
        f"v_cvt_sr_{name}_f32 v20, v10, v12 op_sel:[0,0,{low},{high}]": 8 * (low + 2 * high)
        for low, high in picks
    }
    for text, got in zip(forms, execute(device, list(forms), data), strict=True):
        shift = np.uint32(forms[text])
        ref = old & ~(np.uint32(255) << shift) | codes << shift
        check(ref, low_bits(got.lanes, "u32"), data, text)


# The f16 dot product.


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


DOTS = {
    "v_dot2_f32_f16 v20, v10, v12, v14": (1, 1, 1, 1, 1),
    "v_dot2_f32_f16 v20, v10, v12, v14 neg_lo:[1,0,0] neg_hi:[0,1,0]": (-1, 1, 1, -1, 1),
    "v_dot2_f32_f16 v20, v10, v12, v14 neg_lo:[0,0,1]": (1, 1, 1, 1, -1),
    "v_mov_b32 v20, v14\n  v_dot2c_f32_f16 v20, v10, v12": (1, 1, 1, 1, 1),
}


def test_a_dot_product_of_halves_adds_low_then_high_and_flushes_single_subnormals(device):
    rng = np.random.default_rng(10)
    data = inputs(26, ("f16", "f16", "f32"))
    lanes = data.lanes.copy()
    lanes[:, 2, ::4] = (
        (rng.standard_normal((GROUPS, 16)) * 1e-39).astype(np.float32).view(np.uint32)
    )
    lanes[:, 0, ::8] = 0
    data = dataclasses.replace(data, lanes=lanes)
    parts = []
    for i in (0, 1):
        raw = data.source(i, "u32")
        halves = [(raw >> np.uint32(s)).astype(np.uint16).view(np.float16) for s in (0, 16)]
        parts.append([h.astype(np.float32) for h in halves])
    z = data.source(2, "f32")
    for text, got in zip(DOTS, execute(device, list(DOTS), data), strict=True):
        a0, b0, a1, b1, sign = (np.float32(s) for s in DOTS[text])
        with np.errstate(all="ignore"):
            total = flushed(sign * z)
            total = exact.fma(a0 * parts[0][0], b0 * parts[1][0], total)
            total = flushed(exact.fma(a1 * parts[0][1], b1 * parts[1][1], total))
        check(total.astype(np.float32), low_bits(got.lanes, "u32"), data, text)
