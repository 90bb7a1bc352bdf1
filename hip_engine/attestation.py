"""The route that really ran: from kernel symbols, arguments and instructions, never from a request.

Where a device cannot count (a GPU), "executed" becomes what the disassembly of the very code object
contains, and "reads and writes the cache" becomes which kernels were given the cache's address.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hip_engine.device import Buffer, LaunchRecord, Traffic
from hip_engine.routes import MERGE, REQUIREMENTS
from hip_engine.statics import Registers, StaticCode

NO_TRAFFIC = Traffic(0, 0, 0, 0)


@dataclass(frozen=True)
class Op:
    """All launches of one kernel with one grid and block.

    Attributes:
      executed: wave instructions of all of them by class, None if the device does not count.
      contains: instructions of the kernel by class, where `executed` is None.
    """

    symbol: str
    code_object_sha256: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    registers: Registers
    launches: int
    executed: dict[str, int] | None
    contains: dict[str, int] | None


@dataclass(frozen=True)
class Attestation:
    """The route that the launches amount to.

    Attributes:
      observed: "manual/valu" and the like; a word is "none" where nothing of the kind executed,
        "mixed" where launches differ or are neither.
      ops: every kernel, in the order in which each was first launched.
      attention_mfma: matrix-core instructions that attention executed, None if nobody counted.
      attention_contains: then, attention's kernels and the matrix-core instructions in each.
      accesses_seen: whether the kernels that wrote and read the cache were seen doing so in every
        launch of attention ("all"), in some ("some") or only given its address ("none").
    """

    observed: str
    ops: tuple[Op, ...]
    attention_mfma: int | None
    attention_contains: dict[str, int]
    accesses_seen: str

    @property
    def symbols(self) -> dict[str, int]:
        """Launches of each kernel."""
        found: dict[str, int] = {}
        for op in self.ops:
            found[op.symbol] = found.get(op.symbol, 0) + op.launches
        return found

    @property
    def code_object_sha256(self) -> tuple[str, ...]:
        return tuple(sorted({op.code_object_sha256 for op in self.ops}))


class Observer:
    """Adds up launch records; every launch of attention is judged with those since the last one."""

    def __init__(self, code: StaticCode, cache: Sequence[Buffer]):
        """`cache`: the buffers of K and V."""
        self._code, self._cache = code, tuple(cache)
        self._given: dict[bytes, bool] = {}  # arguments repeat from step to step
        self._ops: dict[tuple, tuple[int, dict[str, int] | None]] = {}
        self._before: list[LaunchRecord] = []
        self._kernels: set[str] = set()
        self._matmuls: set[str] = set()
        self._mfma = 0
        self._uncounted: set[str] = set()
        self._seen: set[bool] = set()

    def add(self, records: Iterable[LaunchRecord]):
        for record in records:
            self._count(record)
            self._before.append(record)
            if record.symbol.startswith("attn_") and record.symbol != MERGE:
                self._judge(record)
                self._before = []

    def attestation(self) -> Attestation:
        uncounted = sorted(self._uncounted)
        contains = {symbol: self._code.contains(symbol).get("mfma", 0) for symbol in uncounted}
        matmuls = self._matmuls | {_matmul(count) for count in contains.values()}
        return Attestation(
            observed=f"{_one_of(self._kernels)}/{_one_of(matmuls)}",
            ops=tuple(self._op(key, *counts) for key, counts in self._ops.items()),
            attention_mfma=None if uncounted or not matmuls else self._mfma,
            attention_contains=contains,
            accesses_seen="none"
            if True not in self._seen
            else "some"
            if False in self._seen
            else "all",
        )

    def _count(self, record: LaunchRecord):
        key = record.symbol, record.code_object_sha256, record.grid, record.block
        launches, executed = self._ops.get(key, (0, {}))
        if not record.executed or executed is None:
            executed = None
        else:
            executed = {
                name: executed.get(name, 0) + count for name, count in record.executed.items()
            }
        self._ops[key] = launches + 1, executed

    def _op(self, key: tuple, launches: int, executed: dict[str, int] | None) -> Op:
        contains = self._code.contains(key[0]) if executed is None else None
        return Op(*key, self._code.registers(key[0]), launches, executed, contains)

    def _judge(self, attention: LaunchRecord):
        given = [record for record in self._before if self._is_given_the_cache(record)]
        rope = any(record.symbol == "rope" for record in self._before)
        found = len(given), rope
        word = next((word for word, needs in REQUIREMENTS.items() if needs == found), "mixed")
        seen = all(record.memory is not None for record in given)
        if attention not in given or (seen and not self._is_used_as(word, attention, given)):
            word = "mixed"
        self._kernels.add(word)
        self._seen.add(seen)
        if attention.executed:
            executed = attention.executed.get("mfma", 0)
            self._mfma += executed
            self._matmuls.add(_matmul(executed))
        else:
            self._uncounted.add(attention.symbol)

    def _is_used_as(self, word: str, attention: LaunchRecord, given: Sequence[LaunchRecord]):
        """One kernel writes both buffers and attention reads both; in fused, it is attention."""
        writers = [record for record in given if any(t.written for t in self._traffic(record))]
        wrote_both = len(writers) == 1 and all(t.written for t in self._traffic(writers[0]))
        reads_both = all(t.read for t in self._traffic(attention))
        return wrote_both and reads_both and (writers[0] is attention) == (word == "fused")

    def _traffic(self, record: LaunchRecord) -> list[Traffic]:
        """Of K and of V, by a launch that was counted."""
        return [record.memory.by_buffer.get(buffer, NO_TRAFFIC) for buffer in self._cache]

    def _is_given_the_cache(self, record: LaunchRecord) -> bool:
        """Whether any aligned word of the arguments is an address in the cache."""
        if record.kernarg not in self._given:
            words = np.frombuffer(record.kernarg[: len(record.kernarg) // 8 * 8], np.uint64)
            self._given[record.kernarg] = any(
                ((words >= buffer.address) & (words < buffer.address + buffer.nbytes)).any()
                for buffer in self._cache
            )
        return self._given[record.kernarg]


def _matmul(instructions: int) -> str:
    return "mfma" if instructions else "valu"


def _one_of(words: set[str]) -> str:
    return "none" if not words else "mixed" if len(words) > 1 else next(iter(words))
