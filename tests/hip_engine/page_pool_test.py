import copy

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from hip_engine.errors import ContextOverflow, OutOfPages, UnknownSequence
from hip_engine.page_pool import PagePool

PAGES, SLOTS, SEQUENCES, POSITIONS = 7, 4, 3, 18


def snapshot(pool):
    return copy.deepcopy(vars(pool))


def same(before, pool):
    for name, value in before.items():
        np.testing.assert_equal(value, vars(pool)[name], err_msg=name)


class Pool(RuleBasedStateMachine):
    """Random life of a pool, beside a model that keeps what every slot should hold."""

    sequences = Bundle("sequences")

    def __init__(self):
        super().__init__()
        self.pool = PagePool(PAGES, SLOTS, SEQUENCES, POSITIONS)
        self.pages = np.zeros((PAGES, SLOTS), np.int64)
        self.tokens: dict[int, list[int]] = {}
        self.next = 1

    def attempt(self, call, *errors):
        before = snapshot(self.pool)
        try:
            return True, call()
        except errors:
            same(before, self.pool)
            return False, None

    @rule(target=sequences)
    def open(self):
        done, sequence = self.attempt(self.pool.open, OutOfPages)
        if not done:
            return multiple()
        self.tokens[sequence] = []
        return sequence

    @rule(sequence=sequences, count=st.integers(0, 9))
    def append(self, sequence, count):
        if sequence not in self.tokens:
            with pytest.raises(UnknownSequence):
                self.pool.reserve({sequence: count})
            return
        done, copies = self.attempt(
            lambda: self.pool.reserve({sequence: count}), ContextOverflow, OutOfPages
        )
        if not done:
            return
        for source, target in copies:
            self.pages[target] = self.pages[source]
        for _ in range(count):
            at = self.pool.length(sequence)
            page = self.pool.tables_BP[sequence, at // SLOTS]
            assert self.pool.references_P[page] == 1, "about to write into a shared page"
            self.pages[page, at % SLOTS] = self.next
            self.tokens[sequence].append(self.next)
            self.pool.advance(sequence, 1)
            self.next += 1

    @rule(target=sequences, sequence=sequences, data=st.data())
    def fork(self, sequence, data):
        if sequence not in self.tokens:
            return multiple()
        length = data.draw(st.integers(0, len(self.tokens[sequence])))
        done, child = self.attempt(lambda: self.pool.fork(sequence, length), OutOfPages)
        if not done:
            return multiple()
        self.tokens[child] = self.tokens[sequence][:length]
        return child

    @rule(sequence=sequences)
    def close(self, sequence):
        if sequence in self.tokens:
            self.pages[self.pool.close(sequence)] = -1
            del self.tokens[sequence]

    @invariant()
    def every_sequence_reads_what_it_wrote(self):
        for sequence, tokens in self.tokens.items():
            slots = np.arange(len(tokens))
            pages = self.pool.tables_BP[sequence, slots // SLOTS]
            assert self.pages[pages, slots % SLOTS].tolist() == tokens

    @invariant()
    def references_are_multiplicities_and_no_page_is_lost(self):
        np.testing.assert_array_equal(self.pool.references_P, self.pool.multiplicity())
        assert self.pool.free_pages == np.count_nonzero(self.pool.references_P == 0)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_batch_that_does_not_fit_reserves_for_nobody():
    pool = PagePool(3, 4, 2, 16)
    a, b = pool.open(), pool.open()
    before = snapshot(pool)
    with pytest.raises(OutOfPages, match="4 pages needed, 3 of the pool are free"):
        pool.reserve({a: 8, b: 8})
    same(before, pool)


def test_a_shared_last_page_is_copied_once_and_only_for_the_writer():
    pool = PagePool(4, 4, 2, 16)
    parent = pool.open()
    assert pool.reserve({parent: 6}) == []
    pool.advance(parent, 6)
    child = pool.fork(parent, 6)
    shared = pool.pages_of(parent)
    assert pool.pages_of(child) == shared
    ((source, target),) = pool.reserve({child: 1})
    assert source == shared[1] and pool.pages_of(child) == (shared[0], target)
    assert pool.pages_of(parent) == shared
    assert pool.reserve({parent: 1}) == []
