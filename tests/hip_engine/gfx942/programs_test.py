"""Random programs give the same bits on gfx942 as on the host: 500 here, 2,000 in all."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.hip_engine.gfx942.program_run import BATCH, minimal, run_batch

BATCHES = 2000 // BATCH
QUICK = 500 // BATCH


@pytest.fixture(scope="module")
def pool():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as made:
        yield made


def check(pool, numbers) -> None:
    found = {}
    for differences in pool.map(run_batch, numbers):
        found |= differences
    if found:
        seed = min(found)
        pytest.fail(f"seeds {found}; a minimal program for {seed}:\n{minimal(seed)}")


def test_500_random_programs_give_the_bits_of_the_host(pool):
    check(pool, range(QUICK))


@pytest.mark.slow
def test_1500_more_random_programs_give_the_bits_of_the_host(pool):
    check(pool, range(QUICK, BATCHES))
