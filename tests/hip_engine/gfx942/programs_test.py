"""Random programs give the same bits on gfx942 as on the host: 500 here, 2,000 in all, and some of
them from the newest compiler that the distribution has.
"""

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor

import pytest

from hip_engine.gfx942.disassembly import disassemble
from tests.hip_engine.gfx942.program import Generator
from tests.hip_engine.gfx942.program_run import (
    BATCH,
    batch,
    level_of,
    minimal,
    only_llvm,
    run_batch,
    run_batch_of_llvm_22,
)

BATCHES = 2000 // BATCH
QUICK = 500 // BATCH
NEWEST = 250 // BATCH
needs_llvm_22 = pytest.mark.skipif(
    not all(map(shutil.which, ("clang-22", "llvm-objdump-22"))),
    reason="no clang-22 here: apt-get install clang-22 lld-22 llvm-22",
)


@pytest.fixture(scope="module")
def pool():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as made:
        yield made


def check(pool, numbers, run=run_batch) -> None:
    found = {}
    for differences in pool.map(run, numbers):
        found |= differences
    if found:
        seed = min(found)
        pytest.fail(f"seeds {found}; a minimal program for {seed}:\n{minimal(seed)}")


def test_500_random_programs_give_the_bits_of_the_host(pool):
    check(pool, range(QUICK))


@pytest.mark.slow
def test_1500_more_random_programs_give_the_bits_of_the_host(pool):
    check(pool, range(QUICK, BATCHES))


@pytest.mark.slow
@needs_llvm_22
def test_250_programs_built_by_clang_22_give_the_bits_of_the_host(pool):
    check(pool, range(NEWEST), run_batch_of_llvm_22)


@needs_llvm_22
def test_llvm_22_and_llvm_19_disassemble_to_the_same_instructions():
    seed = BATCH
    with only_llvm(22):
        code, _ = batch([Generator(seed).program()], level_of(seed))
        newer = disassemble(code)
    with only_llvm(19):
        older = disassemble(code)
    assert any("lit(" in inst.text for inst in newer)
    for x, y in zip(older, newer, strict=True):
        assert (x.mnemonic, x.modifiers, x.size, x.target) == (
            *(y.mnemonic, y.modifiers, y.size, y.target),
        )
        for a, b in zip(x.operands, y.operands, strict=True):
            same = a.kind == b.kind == "int" and (int(a.value) - int(b.value)) % 2**32 == 0
            assert a == b or same, (x.text, y.text)
