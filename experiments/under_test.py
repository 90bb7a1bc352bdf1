"""The engine's side of an alignment: the trace it really computed, and the bytes it touched."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from experiments import kv_watch
from experiments.align import compare, sites, trace
from experiments.align.invariants import LayerInvariants, check_step
from experiments.align.slabs import grew
from experiments.reference import Reference, needed_layers
from hip_engine.attestation import Attestation
from hip_engine.device import Device
from hip_engine.engine import Engine
from hip_engine.taps import Step, Taps


@dataclass(frozen=True)
class WatchedStep:
    """KV invariants of every layer at one decode step, and bytes written outside every slot."""

    layers: list[LayerInvariants]
    stray: list[str]


@dataclass(frozen=True)
class EngineRun:
    """One prompt under the engine, teacher-forced on the oracle's tokens.

    `free_tokens` are those it chose when left alone; equal choices mean an equal run, so the engine
    is run again only from a choice that differs. `untapped_top1` are its choices from the prompt on
    when nothing is read back, so that passes are replayed as graphs. `misread_top1` says where its
    choice was not the largest of its own logits.
    """

    trace: trace.Trace
    top1_T: tuple[int, ...]
    misread_top1: str
    untapped_top1: tuple[int, ...]
    watched: list[WatchedStep]
    free_tokens: tuple[int, ...]
    attestation: Attestation


def run_forced(
    engine: Engine,
    device: Device,
    reference: Reference,
    layers: tuple[int, ...],
    watch: bool,
    batched: int,
    progress: Callable[[int, int], None],
) -> EngineRun:
    """Feeds the oracle's tokens, the first `batched` by prefill and the others one by one, with
    every site of `layers` read back. Of the layers that these depend on, only the output is kept.
    """
    taps = Taps.of(engine.sites, needed_layers(layers, engine.config.L))
    taken = Taken(layers)
    top1, largest, watched = [], [], []

    def take(step: Step):
        taken.add(step.taps)
        top1.append(step.top1)
        largest.append(int(step.logits_V.argmax()))

    engine.reset()
    for step in engine.prefill(reference.token_ids[:batched], taps):
        take(step)
    for position in range(batched, len(reference.token_ids)):
        token_id = reference.token_ids[position]
        if watch and position >= reference.prompt_tokens:
            run_step = partial(engine.step, token_id, taps)
            step, accesses = kv_watch.watch_step(engine, device, run_step)
            slots = kv_watch.kv_slots(engine.kv_geometry(), position + 1)
            watched.append(WatchedStep(*check_step(slots, accesses, position)))
        else:
            step = engine.step(token_id, taps)
        take(step)
        progress(position + 1, len(reference.token_ids))
    attestation = engine.attest()
    run = trace.Run(engine.model_sha256, reference.trace.run.prompt_sha256, reference.token_ids)
    untapped = _untapped(engine, reference)
    free = _free_tokens(engine, reference, top1)
    traced = trace.Trace(run, taken.rows())
    wrong = [
        f"{chosen} for {best} at position {position}"
        for position, (chosen, best) in enumerate(zip(top1, largest, strict=True))
        if chosen != best
    ]
    misread = ", ".join(wrong)
    return EngineRun(traced, tuple(top1), misread, untapped, watched, free, attestation)


def _untapped(engine: Engine, reference: Reference) -> tuple[int, ...]:
    """The engine's choices on the decoded tokens, without taps."""
    engine.reset()
    engine.prefill(reference.token_ids[: reference.prompt_tokens])
    decoded = reference.token_ids[reference.prompt_tokens :]
    return tuple(engine.step(token_id).top1 for token_id in decoded)


class Taken:
    """Collects the taps of every step. Slabs that only grew share the memory of the last one."""

    def __init__(self, layers: tuple[int, ...]):
        self._layers = {*layers, sites.NO_LAYER}
        self._rows: dict[tuple[int, str], list[np.ndarray]] = {}
        self._segments: dict[tuple[int, str], list[np.ndarray]] = {}

    def add(self, taps: dict[tuple[int, str], np.ndarray]) -> None:
        for (layer, site), value in taps.items():
            if sites.SHAPES[site].startswith("S") and layer in self._layers:
                self._add_slab(self._segments.setdefault((layer, site), []), value)
            elif layer in self._layers or site == "resid.out":
                self._rows.setdefault((layer, site), []).append(value)

    @staticmethod
    def _add_slab(segments: list[np.ndarray], slab_SKH: np.ndarray) -> None:
        """Replaces the newest slab if this one only added to it; else begins another segment."""
        if segments and grew(segments[-1], slab_SKH):
            segments[-1] = slab_SKH
        else:
            segments.append(slab_SKH)

    def rows(self) -> dict[tuple[int, str], compare.Rows]:
        """One array a token for slabs, and one array with T first for every other place."""
        found = {place: np.concatenate(rows) for place, rows in self._rows.items()}
        for place, segments in self._segments.items():
            rows: list[np.ndarray] = []
            for slab_SKH in segments:
                rows += [slab_SKH[:slots] for slots in range(len(rows) + 1, len(slab_SKH) + 1)]
            found[place] = rows
        return found


def _free_tokens(engine: Engine, reference: Reference, top1: list[int]) -> tuple[int, ...]:
    """The tokens the engine generates when fed its own choices."""
    start = reference.prompt_tokens
    forced, chosen = reference.token_ids[start:], tuple(top1[start - 1 : -1])
    if forced == chosen:
        return chosen
    engine.reset()
    step = engine.prefill(reference.token_ids[:start])[-1]
    tokens = [step.top1]
    while len(tokens) < len(forced):
        tokens.append(engine.step(tokens[-1]).top1)
    return tuple(tokens)
