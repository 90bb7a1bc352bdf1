"""Every scalar ALU opcode of the table against its NumPy statement: result, SCC and EXEC."""

import numpy as np
import pytest

from tests.hip_engine.gfx942.opcode_bench import GROUPS, execute, inputs, low_bits, raw_bits
from tests.hip_engine.gfx942.scalar_table import CHANGES, ROWS, K, Row

BATCH = 40
ROUNDS = 12


def register(kind: str, first: int) -> str:
    return f"s[{first}:{first + 1}]" if kind.endswith("64") else f"s{first}"


def assembly(row: Row, immediate: int) -> str:
    result, *sources = row.kinds.split()
    operands = [
        str(immediate) if kind == "k" else register(kind, 18 + 2 * i)
        for i, kind in enumerate(sources)
    ]
    targets = [] if result == "-" else [register(result, 24)]
    return f"{row.opcode} {', '.join([*targets, *operands])}"


def immediate_of(row: Row, round_: int) -> int:
    value = K[round_ % len(K)]
    signed = not row.opcode.endswith("u32")
    return value - 0x10000 if signed and value & 0x8000 else value


def expected(row: Row, data, immediate: int):
    """(raw destination pair, SCC, EXEC) after the instruction."""
    result, *kinds = row.kinds.split()
    sources = [
        np.full(GROUPS, immediate, np.int64).astype(np.uint64).astype(np.uint16).view(np.int16)
        if kind == "k"
        else low_bits(data.scalars[:, 1 + i].copy(), kind)
        for i, kind in enumerate(kinds)
    ]
    old = data.scalars[:, 0]
    if row in CHANGES:
        sources.append(low_bits(old.copy(), result))
    scc = data.scalars[:, 3] != 0
    with np.errstate(all="ignore"):
        value, new_scc, new_exec = row.function(*sources, scc, data.exec)
    destination = old
    if value is not None:
        bits = 8 * value.dtype.itemsize
        kept = np.uint64(0) if bits == 64 else old >> np.uint64(bits) << np.uint64(bits)
        destination = raw_bits(value) | kept
    left = data.exec if new_exec is None else new_exec
    return destination, scc if new_scc is None else new_scc, left


@pytest.mark.parametrize("first", range(0, len(ROWS + CHANGES), BATCH))
def test_scalar_opcodes_do_what_the_manual_says(device, first):
    members = (ROWS + CHANGES)[first : first + BATCH]
    failures = set()
    for round_ in range(ROUNDS):
        data = inputs(100 + round_, ("u64", "u64", "u32", "u64") if round_ % 2 else ("u32",))
        used = [immediate_of(row, round_ // 2) for row in members]
        texts = [assembly(row, k) for row, k in zip(members, used, strict=True)]
        for row, k, got in zip(members, used, execute(device, texts, data), strict=True):
            destination, scc, left = expected(row, data, k)
            same = (destination == got.scalar) & (scc == (got.scc != 0)) & (left == got.exec)
            if not same.all():
                at = int(np.argmin(same))
                failures.add(
                    f"{row.opcode} ({row.meaning}) of {data.scalars[at]} and {k}: expected "
                    f"{int(destination[at]):#x} SCC {int(scc[at])} EXEC {int(left[at]):#x}, got "
                    f"{int(got.scalar[at]):#x} SCC {int(got.scc[at])} EXEC {int(got.exec[at]):#x}"
                )
    assert not failures, "\n".join(sorted(failures))


def test_no_scalar_opcode_is_stated_twice():
    names = [row.opcode for row in ROWS + CHANGES]
    assert len(names) == len(set(names))
