"""Who owns which page of the KV cache: block tables, lengths, reference counts. No device here."""

from dataclasses import dataclass, field

import numpy as np

from hip_engine.errors import (
    ContextOverflow,
    ForeignSequence,
    OutOfPages,
    UnknownSequence,
    WrongBlockTable,
)

UNMAPPED = 0  # what a table holds beyond a sequence's pages; never looked up


class SequenceId(int):
    """The number of a sequence, and the pool that opened it: no other takes it.

    Two sequences of one number are not equal, so that a batch cannot confuse them; both equal the
    number itself, which a pool takes for its own sequence.
    """

    pool: "PagePool"

    def of(self, pool: "PagePool") -> "SequenceId":
        self.pool = pool
        return self

    def __eq__(self, other) -> bool:
        return self is other if isinstance(other, SequenceId) else int(self) == other

    def __ne__(self, other) -> bool:
        return not self == other

    __hash__ = int.__hash__


@dataclass
class _Sequence:
    id: SequenceId = field(compare=False)
    length: int = 0
    pages: list[int] = field(default_factory=list)


class PagePool:
    """`pages` pages of `page_slots` slots for at most `sequences` sequences of `positions` slots.

    Every method either does all it says or raises and changes nothing. `owner` says in errors whose
    pool it is.
    """

    def __init__(
        self, pages: int, page_slots: int, sequences: int, positions: int, owner: str = "this pool"
    ):
        self.page_slots, self.positions, self.owner = page_slots, positions, owner
        self.tables_BP = np.full((sequences, -(-positions // page_slots)), UNMAPPED, np.int32)
        self.references_P = np.zeros(pages, np.int64)
        self._free = list(range(pages - 1, -1, -1))
        self._sequences: dict[int, _Sequence] = {}

    @property
    def sequences(self) -> tuple[SequenceId, ...]:
        return tuple(state.id for state in self._sequences.values())

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def length(self, sequence: int) -> int:
        return self._of(sequence).length

    def pages_of(self, sequence: int) -> tuple[int, ...]:
        return tuple(self._of(sequence).pages)

    def open(self) -> SequenceId:
        """A new empty sequence: the lowest unused row of the tables.

        Raises:
          OutOfPages: every row is in use.
        """
        for sequence in range(len(self.tables_BP)):
            if sequence not in self._sequences:
                self._sequences[sequence] = _Sequence(SequenceId(sequence).of(self))
                return self._sequences[sequence].id
        raise OutOfPages(f"all {len(self.tables_BP)} sequences are in use: close one first")

    def reserve(self, wanted: dict[int, int]) -> list[tuple[int, int]]:
        """Makes room for `wanted[sequence]` more tokens each, all or none.

        The returned (from, to) pages are to be copied before anything is written: the shared last
        page of a forked sequence becomes its own.

        Raises:
          ContextOverflow: a sequence would exceed its positions.
          OutOfPages: the free pages do not suffice.
          WrongBlockTable: somebody else wrote to a sequence's row of the tables.
        """
        needed = 0
        for sequence, tokens in wanted.items():
            state = self._of(sequence)
            self._check_table(sequence, state)
            end = state.length + tokens
            if end > self.positions:
                raise ContextOverflow(
                    f"{tokens} tokens at position {state.length}: the cache has room for "
                    f"{self.positions - state.length} of {self.positions}"
                )
            needed += -(-end // self.page_slots) - len(state.pages)
            needed += tokens > 0 and self._shares_its_open_page(state)
        if needed > len(self._free):
            raise OutOfPages(f"{needed} pages needed, {len(self._free)} of the pool are free")
        copies = []
        for sequence, tokens in wanted.items():
            state = self._of(sequence)
            if tokens > 0 and self._shares_its_open_page(state):
                at = state.length // self.page_slots
                copies.append((state.pages[at], self._replace(state, at)))
            while len(state.pages) * self.page_slots < state.length + tokens:
                state.pages.append(self._take())
            self._write_table(sequence)
        return copies

    def advance(self, sequence: int, tokens: int):
        """The reserved slots of `tokens` tokens are written."""
        state = self._of(sequence)
        assert state.length + tokens <= len(state.pages) * self.page_slots
        state.length += tokens

    def fork(self, sequence: int, length: int) -> SequenceId:
        """A new sequence that shares the first `length` slots until either writes there.

        Raises:
          OutOfPages: no row for another sequence; ContextOverflow: beyond what is cached.
        """
        parent = self._of(sequence)
        if not 0 <= length <= parent.length:
            raise ContextOverflow(f"a prefix of {length} slots of {parent.length}")
        child = self.open()
        pages = parent.pages[: -(-length // self.page_slots)]
        self._sequences[int(child)] = _Sequence(child, length, list(pages))
        self.references_P[pages] += 1
        self._write_table(child)
        return child

    def close(self, sequence: int) -> list[int]:
        """Forgets a sequence; returns the pages that nobody owns any more."""
        freed = []
        for page in self._of(sequence).pages:
            self.references_P[page] -= 1
            if self.references_P[page] == 0:
                freed.append(page)
        self._free += reversed(freed)
        del self._sequences[int(sequence)]
        self.tables_BP[sequence] = UNMAPPED
        return freed

    def multiplicity(self) -> np.ndarray:
        """How often each page occurs in the live sequences: must equal references_P."""
        pages = [page for state in self._sequences.values() for page in state.pages]
        return np.bincount(np.array(pages, np.int64), minlength=len(self.references_P))

    def _of(self, sequence: int) -> _Sequence:
        if isinstance(sequence, SequenceId) and sequence.pool is not self:
            raise ForeignSequence(
                f"sequence {sequence} was opened by {sequence.pool.owner}, or before a reset: this "
                f"is {self.owner}"
            )
        state = self._sequences.get(int(sequence))
        if state is None:
            raise UnknownSequence(f"no sequence {sequence}: open are {sorted(self._sequences)}")
        if isinstance(sequence, SequenceId) and sequence is not state.id:
            raise UnknownSequence(f"sequence {sequence} was closed; its number is another's now")
        return state

    def _check_table(self, sequence: int, state: _Sequence):
        mapped = self.tables_BP[sequence, : len(state.pages)]
        wrong = np.flatnonzero(mapped != np.array(state.pages, np.int32))
        if len(wrong):
            at = wrong[0]
            raise WrongBlockTable(
                f"the block table of sequence {sequence} maps slots from {at * self.page_slots} on "
                f"to page {mapped[at]}, the pool gave it page {state.pages[at]}"
            )

    def _shares_its_open_page(self, state: _Sequence) -> bool:
        """Whether the next slot lies in a page that another sequence owns too."""
        at = state.length // self.page_slots
        return at < len(state.pages) and self.references_P[state.pages[at]] > 1

    def _take(self) -> int:
        page = self._free.pop()
        self.references_P[page] = 1
        return page

    def _replace(self, state: _Sequence, at: int) -> int:
        self.references_P[state.pages[at]] -= 1
        state.pages[at] = self._take()
        return state.pages[at]

    def _write_table(self, sequence: int):
        pages = self._sequences[int(sequence)].pages
        self.tables_BP[sequence] = UNMAPPED
        self.tables_BP[sequence, : len(pages)] = pages
