"""Every vector ALU opcode of the table against its NumPy statement, under partial EXEC."""

from collections import defaultdict

import numpy as np
import pytest

from tests.hip_engine.gfx942.opcode_bench import (
    KINDS,
    execute,
    inputs,
    lane_bits,
    low_bits,
    mask_of,
    raw_bits,
)
from tests.hip_engine.gfx942.vector_table import ROWS, Row

BATCH = 24
# 16-bit results that leave the upper half of the destination alone; the others clear it.
KEEPS_HIGH_HALF = {
    *("v_fma_f16", "v_mad_u16", "v_mad_i16", "v_min3_f16", "v_max3_f16", "v_med3_f16"),
    *("v_div_fixup_f16", "v_mad_f16"),
}


def register(kind: str, first: int) -> str:
    return f"v[{first}:{first + 1}]" if kind.endswith("64") else f"v{first}"


def assembly(row: Row) -> str:
    result, *sources = row.kinds.split()
    if row.text:
        return row.text
    sources = [kind for kind in sources if kind[0] != "="]
    operands = [
        "vcc" if kind == "carry" else register(kind, 10 + 2 * i) for i, kind in enumerate(sources)
    ]
    if result == "mask":
        targets = ["s[14:15]"]
    else:
        kind, _, mask = result.partition("+")
        targets = [register(kind, 20)]
        if mask:
            targets.append("s[14:15]" if "mad" in row.opcode else "vcc")
    return f"{row.opcode} {', '.join([*targets, *operands])}"


def source(data, number: int, kind: str) -> np.ndarray:
    if kind == "carry":
        return lane_bits(data.vcc)
    return data.source(3, kind[1:]) if kind[0] == "=" else data.source(number, kind)


def expected(row: Row, data):
    """(destination lanes, mask or None) if every lane were active."""
    result, *kinds = row.kinds.split()
    sources = [source(data, i, kind) for i, kind in enumerate(kinds)]
    with np.errstate(all="ignore"):
        value = row.function(*sources)
    if result == "mask":
        return None, value
    lanes, mask = value if "+" in result else (value, None)
    kind = result.partition("+")[0]
    if "packed" not in getattr(row.function, "__qualname__", ""):
        assert lanes.dtype == KINDS[kind], (row.opcode, lanes.dtype)
    return lanes, mask


def with_old(row: Row, lanes: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Raw result beside what the instruction does not write of the destination."""
    bits = 8 * lanes.dtype.itemsize
    raw = raw_bits(lanes)
    if bits == 16 and row.opcode not in KEEPS_HIGH_HALF:
        bits = 32
    if bits == 64:
        return raw
    return raw | old >> np.uint64(bits) << np.uint64(bits)


def same_class(kind: str, ref: np.ndarray, got: np.ndarray, ulp: int) -> np.ndarray:
    """Lanes where two float results agree: both NaN, or within `ulp` steps."""
    if kind[0] != "f":
        return np.zeros(ref.shape, bool)
    x, y = low_bits(ref, kind), low_bits(got, kind)
    close = np.isnan(x) & np.isnan(y)
    if ulp:
        with np.errstate(all="ignore"):
            near = [np.nextafter(x, KINDS[kind](side)) == y for side in (-np.inf, np.inf)]
        close |= np.isfinite(x) & (np.logical_or(*near) | (x == y))
    return close


def packed_nans(element: str, ref: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Lanes where two packed results agree but for the bits of NaN."""
    agree, bits = np.ones(ref.shape, bool), int(element[1:])
    for shift in (0, bits):
        x, y = (low_bits(v >> np.uint64(shift), element) for v in (ref, got))
        agree &= (raw_bits(x) == raw_bits(y)) | np.isnan(x) & np.isnan(y)
    return agree


def check(row: Row, data, outcome) -> None:
    lanes, mask = expected(row, data)
    active, old = lane_bits(data.exec), data.lanes[:, 3]
    if lanes is not None:
        ref = np.where(active, with_old(row, lanes, old), old)
        kind = row.kinds.split()[0].partition("+")[0]
        good = (ref == outcome.lanes) | same_class(kind, ref, outcome.lanes, row.ulp)
        element = {"u32": "f16", "u64": "f32"}.get(kind)
        if element and element in row.opcode:
            good |= packed_nans(element, ref, outcome.lanes)
        assert good.all(), describe(row, data, ref, outcome.lanes, ~good)
    if mask is not None:
        ref = mask_of(mask & active)
        wrong = lane_bits(ref ^ outcome.mask)
        assert not wrong.any(), describe(row, data, mask, lane_bits(outcome.mask), wrong)
    left = mask_of(mask & active) if row.opcode.startswith("v_cmpx") else data.exec
    np.testing.assert_array_equal(left, outcome.exec, err_msg=row.opcode)


def describe(row: Row, data, ref, got, wrong) -> str:
    at = tuple(np.argwhere(wrong)[0])
    kinds = row.kinds.split()[1:]
    sources = [f"{source(data, i, kind)[at]!r}" for i, kind in enumerate(kinds)]
    return (
        f"{row.opcode} ({row.meaning}) of {', '.join(sources)}: expected {int(ref[at]):#x}, got "
        f"{int(got[at]):#x} in group {at[0]}, lane {at[1]}; {wrong.sum()} lanes differ"
    )


def batches():
    """Rows with the same source kinds, some at a time, so that edge values fit the kinds."""
    groups = defaultdict(list)
    for row in ROWS:
        groups[tuple(k for k in row.kinds.split()[1:] if k != "carry" and k[0] != "=")].append(row)
    for kinds, members in groups.items():
        for first in range(0, len(members), BATCH):
            some = members[first : first + BATCH]
            yield pytest.param(kinds, some, id=f"{'-'.join(kinds)}-{some[0].opcode}")


@pytest.mark.parametrize(("kinds", "members"), list(batches()))
def test_vector_opcodes_do_what_the_manual_says(device, kinds, members):
    data = inputs(len(members), kinds)
    outcomes = execute(device, [assembly(row) for row in members], data)
    failures = []
    for row, outcome in zip(members, outcomes, strict=True):
        try:
            check(row, data, outcome)
        except AssertionError as error:
            failures.append(str(error)[:400])
    assert not failures, "\n".join(failures)


def test_no_opcode_is_stated_twice():
    names = [row.opcode for row in ROWS]
    assert len(names) == len(set(names))
