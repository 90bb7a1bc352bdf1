"""What went wrong with the KV cache: written wrong, overwritten later, or read wrong, and by whom.

Two witnesses: the values of the slabs after every step, and the addresses that watched steps really
touched. A wrong vector is looked for among all that was captured, so that its writer has a name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from experiments.align import sites
from experiments.align.compare import SiteVerdict
from experiments.align.invariants import TOUCHED, LayerInvariants
from experiments.align.patterns import ranges
from experiments.align.trace import Trace

WRITTEN, OVERWRITTEN, READ = "written wrong", "overwritten later", "read wrong"
CACHES = {"kv.k": "k", "kv.v": "v"}
SOURCES = ("attn.k_rope", "attn.v", "attn.k")
"""What a step may have written: the tensors of T K H that its kernels hold."""
FLOATS = ("float16", "bfloat16", "float32")
"""Formats in which a stored vector can be told by its bits."""


@dataclass(frozen=True)
class Source:
    """Where a vector was found: one head of one token's tensor."""

    site: str
    layer: int
    token: int
    head: int

    def __str__(self) -> str:
        return f"{sites.name(self.layer, self.site)}, token {self.token}, head {self.head}"


@dataclass(frozen=True)
class CacheFault:
    """The first of `count` like it: the slot and head, and the step that made or found it so.

    holds: what the slot contains instead, if that was captured. witness: `values` or `addresses`.
    """

    kind: str
    cache: str
    layer: int
    slot: int
    head: int
    step: int
    token_id: int
    count: int
    witness: str
    holds: str = ""

    def sentence(self) -> str:
        step = f"step {self.step} (token {self.token_id})"
        where = f"{self.cache.upper()} cache of layer {self.layer}, slot {self.slot}"
        where += f", kv head {self.head}"
        what = {
            WRITTEN: f"written wrong by {step}",
            OVERWRITTEN: f"of token {self.slot}, overwritten later by {step}",
            READ: f"read wrong: {self.holds or 'not read'} in {step}",
        }[self.kind]
        holds = f"; it holds {self.holds}" if self.holds and self.kind != READ else ""
        more = f"; {self.count - 1} more like it" if self.count > 1 else ""
        return f"{where}, {what}{holds} (by {self.witness}){more}"

    def record(self) -> dict:
        return asdict(self)


def find(
    verdicts: Sequence[SiteVerdict],
    got: Trace,
    stores: Mapping[str, str],
    steps: Sequence[Sequence[LayerInvariants]],
) -> list[CacheFault]:
    """One fault for each kind, cache and layer, the earliest; values before addresses."""
    first: dict[tuple, CacheFault] = {}
    values = _by_values(verdicts, got, stores)
    addresses = (f for layers in steps for i in layers for f in _by_addresses(i, got))
    for found in (*values, *addresses):
        first.setdefault((found.kind, found.cache, found.layer), found)
    return sorted(first.values(), key=lambda fault: (fault.step, fault.layer))


def sentences(faults: Sequence[CacheFault]) -> list[str]:
    """One a kind and cache: the earliest, and the other layers that show the same."""
    grouped: dict[tuple[str, str], list[CacheFault]] = {}
    for fault in faults:
        grouped.setdefault((fault.kind, fault.cache), []).append(fault)
    return [
        alike[0].sentence()
        + (f"; also layers {ranges(f.layer for f in alike[1:])}" * (len(alike) > 1))
        for alike in grouped.values()
    ]


def _by_values(verdicts, got: Trace, stores) -> Iterator[CacheFault]:
    for found in verdicts:
        if found.site not in CACHES or not any((ratio > 1).any() for ratio in found.ratios):
            continue
        slabs = got.rows(found.layer, found.site)
        known = _known(got, stores[found.site], slabs[0].dtype)
        yield from _of_slabs(found, slabs, known, got.run.token_ids_T)


def _of_slabs(found: SiteVerdict, slabs, known: dict, token_ids) -> Iterator[CacheFault]:
    """The first slot written wrong and the first overwritten; each step changes what is right."""
    first: dict[str, list] = {}
    for step, ratio in enumerate(found.ratios):
        wrong_SK = (ratio > 1).any(axis=-1)
        offset = step + 1 - len(wrong_SK)
        for slot, head in np.argwhere(wrong_SK):
            kind = WRITTEN if offset + slot == step else OVERWRITTEN
            if kind == OVERWRITTEN and _kept(slabs, step, offset + slot, head):
                continue  # A NaN differs from itself.
            first.setdefault(kind, [int(offset + slot), int(head), step, 0])[3] += 1
    for kind, (slot, head, step, count) in first.items():
        vector_H = slabs[step][slot, head]
        yield CacheFault(
            kind,
            CACHES[found.site],
            found.layer,
            slot,
            head,
            step,
            token_ids[step],
            count,
            "values",
            _holds(vector_H, known),
        )


def _kept(slabs, step: int, slot: int, head: int) -> bool:
    """Whether a slot holds the bits it held a step ago."""
    return slabs[step][slot, head].tobytes() == slabs[step - 1][slot, head].tobytes()


def _holds(vector_H: np.ndarray, known: Mapping[bytes, Source]) -> str:
    if not np.isfinite(vector_H).all():
        return "values that are not finite, as memory that nothing wrote"
    if not vector_H.any():
        return "zeros"
    return str(known.get(vector_H.tobytes(), "none of the captured vectors"))


def _known(got: Trace, store: str, dtype: np.dtype) -> dict[bytes, Source]:
    """Every captured vector as the cache would store it; the earliest token of equal ones."""
    found: dict[bytes, Source] = {}
    if store not in FLOATS:  # Scaled formats need the scale that the engine chose.
        return found
    for layer, site in sorted(got.rows_by_place, key=lambda place: sites.order(*place)):
        if site not in SOURCES:
            continue
        with np.errstate(over="ignore"):
            rows = [np.asarray(row).astype(store).astype(dtype) for row in got.rows(layer, site)]
        for token, row_KH in enumerate(rows):
            for head, vector_H in enumerate(row_KH):
                found.setdefault(vector_H.tobytes(), Source(site, layer, token, head))
    return found


def _by_addresses(step: LayerInvariants, got: Trace) -> Iterator[CacheFault]:
    """What a watched step touched that it should not have, and did not that it should."""
    slots_S = np.arange(step.touched_KS.shape[1])
    live_S, this_S = slots_S <= step.position, slots_S == step.position
    for cache in CACHES.values():
        read_KS, written_KS = (
            (step.touched_KS & TOUCHED[f"{cache} {way}"]) > 0 for way in ("read", "written")
        )
        findings = [
            (WRITTEN, ~written_KS & this_S, "what was there before"),
            (OVERWRITTEN, written_KS & ~this_S, ""),
        ]
        if step.read_slots is not None:  # else nobody could see what was read
            findings += [
                (READ, ~read_KS & live_S, "not read"),
                (READ, read_KS & ~live_S, "read though no token had filled it"),
            ]
        for kind, wrong_KS, holds in findings:
            for head, slot in np.argwhere(wrong_KS)[:1]:
                yield CacheFault(
                    kind,
                    cache,
                    step.layer,
                    int(slot),
                    int(head),
                    step.position,
                    got.run.token_ids_T[step.position],
                    int(wrong_KS.sum()),
                    "addresses",
                    holds,
                )
