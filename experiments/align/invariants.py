"""KV-cache invariants from the bytes a step really wrote and read.

After one decode step at position p, for every layer and kv head:
- written: exactly the bytes of slot p, and nothing else in the cache buffers, guard bytes included;
- read: nothing but live slots (positions 0..p);
- covered: every live slot of this layer was read, which fails for a kernel that is handed another
  layer's base.
"""

from dataclasses import dataclass, field, replace

import numpy as np

TOUCHED = {"k read": 1, "v read": 2, "k written": 4, "v written": 8}


@dataclass(frozen=True)
class Slots:
    """Where one buffer keeps the vectors of one kind, "k" or "v": the byte offset of every slot."""

    kind: str
    base_address: int
    nbytes: int
    slot_bytes: int
    offsets_LKS: np.ndarray

    def offset(self, layer: int, kv_head: int, position: int) -> int:
        return int(self.offsets_LKS[layer, kv_head, position])


@dataclass(frozen=True)
class Access:
    """One bool for each byte of that buffer: what the step's kernels stored to and loaded from.

    `read` is None where nobody could see it: then nothing is said of reads.
    """

    written: np.ndarray
    read: np.ndarray | None


@dataclass(frozen=True)
class LayerInvariants:
    """Findings of one layer at one step; empty `errors` means that all invariants held.

    `written_at`, `read_at`: byte offset of the first slot of this layer that was really touched, by
    kind ("k", "v"); a kind that was not touched is absent. `touched_KS`: bits of TOUCHED by slot.
    `read_slots` is None where reads could not be seen.
    """

    layer: int
    position: int
    written_slots: int
    read_slots: int | None
    written_at: dict[str, int]
    read_at: dict[str, int]
    errors: tuple[str, ...]
    touched_KS: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), "u1"), compare=False)

    @property
    def ok(self) -> bool:
        return not self.errors


def _by_slot(flags: np.ndarray, slots: Slots) -> np.ndarray:
    """Bytes flagged in each slot, LKS, for slots anywhere in the buffer."""
    touched = np.flatnonzero(flags)
    begin_LKS = np.searchsorted(touched, slots.offsets_LKS)
    return np.searchsorted(touched, slots.offsets_LKS + slots.slot_bytes) - begin_LKS


def _where(where: np.ndarray) -> str:
    """`head 1 position 7`, with a count if there are more."""
    indices = np.argwhere(where)
    head, position = indices[0]
    more = f" and {len(indices) - 1} more" if len(indices) > 1 else ""
    return f"head {head} position {position}{more}"


def _layer_errors(kind: str, slot_bytes: int, written_KS, read_KS, position: int) -> list[str]:
    """`written_KS`, `read_KS`: bytes flagged in each slot of the layer; reads may be unknown."""
    live = np.arange(written_KS.shape[1]) <= position
    this = np.arange(written_KS.shape[1]) == position
    found = []
    if (lacking := this & (written_KS < slot_bytes)).any():
        found.append(f"{kind} slot not wholly written: {_where(lacking)}")
    if (stray := ~this & (written_KS > 0)).any():
        found.append(f"{kind} written outside this token's slot: {_where(stray)}")
    if read_KS is None:
        return found
    if (dead := ~live & (read_KS > 0)).any():
        found.append(f"{kind} read beyond the live slots: {_where(dead)}")
    if (unread := live & (read_KS < slot_bytes)).any():
        found.append(f"{kind} live slot never read: {_where(unread)}")
    return found


def _first_touched(slots: list[Slots], flagged: list[np.ndarray], layer: int) -> dict[str, int]:
    """Lowest byte offset among the layer's slots that hold a flagged byte, by kind."""
    found = {}
    for s, bytes_LKS in zip(slots, flagged, strict=True):
        touched = s.offsets_LKS[layer][bytes_LKS[layer] > 0]
        if touched.size:
            found[s.kind] = int(touched.min())
    return found


def _touched_slots(flagged: list[np.ndarray], layer: int) -> int:
    return int(sum((bytes_LKS[layer] > 0).sum() for bytes_LKS in flagged))


def _touched(slots: list[Slots], read, written, layer: int) -> np.ndarray:
    """Which slots of the layer were read and written, as bits of TOUCHED, KS."""
    bits_KS = np.zeros(slots[0].offsets_LKS.shape[1:], np.uint8)
    for way, flagged in (("read", read), ("written", written)):
        for s, bytes_LKS in zip(slots, flagged, strict=bool(flagged)):
            bits_KS |= np.where(bytes_LKS[layer] > 0, TOUCHED[f"{s.kind} {way}"], 0).astype("u1")
    return bits_KS


def _outside(slots: Slots, access: Access) -> str:
    """Bytes of the buffer that belong to no slot and were written; a slot counts once, even if the
    layout gives it to two layers."""
    once = replace(slots, offsets_LKS=np.unique(slots.offsets_LKS))
    covered = int(_by_slot(access.written, once).sum())
    stray = int(access.written.sum()) - covered
    return f"{slots.kind}: {stray} bytes written outside every slot" if stray else ""


def check_step(
    slots: list[Slots], accesses: list[Access], position: int
) -> tuple[list[LayerInvariants], list[str]]:
    """Invariants of every layer after one step, and what was written outside every slot."""
    written = [_by_slot(a.written, s) for s, a in zip(slots, accesses, strict=True)]
    seen = all(a.read is not None for a in accesses)
    read = [_by_slot(a.read, s) for s, a in zip(slots, accesses, strict=True)] if seen else []
    layers = []
    for layer in range(slots[0].offsets_LKS.shape[0]):
        errors = []
        for s, written_LKS, read_LKS in zip(slots, written, read or [None] * 2, strict=True):
            read_KS = None if read_LKS is None else read_LKS[layer]
            errors += _layer_errors(s.kind, s.slot_bytes, written_LKS[layer], read_KS, position)
        counts = [_touched_slots(written, layer), _touched_slots(read, layer) if seen else None]
        places = [_first_touched(slots, written, layer)]
        places.append(_first_touched(slots, read, layer) if seen else {})
        touched_KS = _touched(slots, read, written, layer)
        layers.append(LayerInvariants(layer, position, *counts, *places, tuple(errors), touched_KS))
    stray = [text for s, a in zip(slots, accesses, strict=True) if (text := _outside(s, a))]
    return layers, stray
