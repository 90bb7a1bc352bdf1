"""Many policies in one pass: op by op, each matrix is decoded once for all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.align.metrics import difference, rms
from experiments.align.tokens import kl_nats
from greta_jax.graph import KV_SITES
from greta_jax.model import Oracle, Run
from greta_jax.precision import Policy
from greta_jax.taps import MODEL_LAYER, Taps


@dataclass(frozen=True)
class SiteError:
    """Of one tensor, all tokens: rms and largest error, and the rms of the tensor itself."""

    rms: float
    max: float
    signal: float

    @property
    def relative(self) -> float:
        return self.rms / self.signal if self.signal else 0.0


@dataclass(frozen=True)
class Cost:
    """What one policy cost on one prompt. kl_T: nats by token; flips: positions whose top-1 moved.

    margins: of each flip, how far the reference's first two logits were apart.
    """

    sites: Mapping[tuple[int, str], SiteError]
    kl_T: np.ndarray
    flips: tuple[int, ...]
    margins: tuple[float, ...]


class _DecodedOnce:
    """Weights that remember the matrices of the current op, whoever asks."""

    def __init__(self, weights):
        self._weights, self._now, self._chunks = weights, None, ()

    def __getattr__(self, name: str):
        return getattr(self._weights, name)

    def chunks(self, name: str, layer: int = MODEL_LAYER, checked: bool = True) -> Iterator:
        if self._weights.resident:
            yield from self._weights.chunks(name, layer, checked)
            return
        if self._now != (name, layer):
            self._now, self._chunks = (name, layer), tuple(self._weights.chunks(name, layer))
        yield from self._chunks


@dataclass
class _Lane:
    """One policy under way."""

    oracle: Oracle
    run: Run
    tensors: dict


def costs(
    oracle: Oracle,
    policies: Sequence[Policy],
    token_ids: Sequence[int],
    with_sites: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Cost]:
    """Each policy against `oracle`, which sets the reference; all tokens in one prefill."""
    shared: dict[str, _DecodedOnce] = {}
    lanes = []
    for policy in (oracle.policy, *policies):
        one = oracle.with_policy(policy)
        one.weights = shared.setdefault(one.weights.store, _DecodedOnce(one.weights))
        run = one.begin(np.asarray(token_ids, np.int64), one.empty_cache(), Taps())
        lanes.append(_Lane(one, run, {}))
    found: list[dict] = [{} for _ in policies]

    def compare(layer: int, site: str, values: Sequence) -> None:
        if with_sites:
            ref, *rest = (_live(site, value, len(token_ids)) for value in values)
            for errors, got in zip(found, rest, strict=True):
                errors[layer, site] = site_error(ref, got)

    compare(MODEL_LAYER, "embed", [lane.run.x_TD for lane in lanes])
    layers = oracle.config.layers
    for layer in range(layers):
        _run_layer(lanes, layer, compare)
        progress(layer + 1, layers)
    logits = [lane.oracle.finish(lane.run) for lane in lanes]
    compare(MODEL_LAYER, "logits", logits)
    return [cost_of(errors, logits[0], got) for errors, got in zip(found, logits[1:], strict=True)]


def _run_layer(lanes: Sequence[_Lane], layer: int, compare: Callable) -> None:
    """Oracle.run_layer for all lanes, op by op."""
    for lane in lanes:
        lane.tensors = {**lane.run.sources, "resid.in": lane.run.x_TD}
        rotation = lane.run.sources["rotation"][lane.oracle.config.rope_of(layer)]
        lane.tensors["rotation"] = rotation
    for op in lanes[0].oracle.ops:
        for lane in lanes:
            value = lane.oracle.apply(op, layer, lane.tensors)
            if op.site in KV_SITES:
                value = lane.run.append(op.site, layer, value)
            lane.tensors[op.site] = value
        compare(layer, op.site, [lane.tensors[op.site] for lane in lanes])
    for lane in lanes:
        lane.run.x_TD = lane.tensors["resid.out"]
        for site in KV_SITES:
            lane.run.slabs[site].pop(layer)
        lane.tensors = {}


def _live(site: str, value, tokens: int) -> np.ndarray:
    """Without the rows and slots of padding."""
    rows = np.asarray(value)[:tokens]
    return rows[:, :, :tokens] if site in ("attn.scores", "attn.probs") else rows


def site_error(ref: np.ndarray, got: np.ndarray) -> SiteError:
    """Not finite where `got` is not."""
    error = difference(got, ref)
    largest = np.abs(error).max() if np.isfinite(error).all() else np.inf
    whole = rms(error) if np.isfinite(largest) else np.inf
    return SiteError(float(whole), float(largest), rms(ref))


def cost_of(errors: dict, ref_TV: np.ndarray, got_TV: np.ndarray) -> Cost:
    """Errors of every site, and what they did to the next token."""
    ref_top, got_top = ref_TV.argmax(axis=1), got_TV.argmax(axis=1)
    flips = tuple(int(t) for t in np.flatnonzero(ref_top != got_top))
    first_two = np.sort(ref_TV[list(flips)], axis=1)[:, -2:]
    margins = tuple(float(high - low) for low, high in first_two)
    return Cost(errors, kl_nats(ref_TV, got_TV), flips, margins)
