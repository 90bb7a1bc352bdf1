"""Many policies in one pass: op by op, each chunk of weights is decoded once for all of them.

Until a policy deviates, its tensors are those of another, and are computed once for both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ablation.shared import DecodedOnce, SharedWeights
from experiments.align.tokens import kl_nats
from greta_jax.graph import FINAL_NORM, KV_SITES, LOGITS, Op
from greta_jax.model import Oracle, Run
from greta_jax.precision import Policy
from greta_jax.taps import MODEL_LAYER, Taps

Place = tuple[int, str]
"""Layer and site."""

Engine = Mapping[Place, np.ndarray]
"""Its tensors of all tokens, logits included."""

_LOGITS = (MODEL_LAYER, "logits")


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

    margins: of each flip, how far the reference's first two logits were apart. distance: rms of
    the engine's tensor less this policy's, where an engine's were given.
    """

    sites: Mapping[Place, SiteError]
    kl_T: np.ndarray
    flips: tuple[int, ...]
    margins: tuple[float, ...]
    distance: Mapping[Place, float] = field(default_factory=dict)


@dataclass
class _Lane:
    """One policy under way."""

    oracle: Oracle
    run: Run
    tensors: dict


class _Errors:
    """What every lane but the first, the reference, is measured by; and an engine, if there is."""

    def __init__(self, lanes: int, tokens: int, engine: Engine | None):
        self.sites: list[dict[Place, SiteError]] = [{} for _ in range(lanes)]
        self.distances: list[dict[Place, float]] = [{} for _ in range(lanes)]
        self.engine: dict[Place, SiteError] = {}
        self._tokens, self._tensors = tokens, engine or {}

    def add(self, layer: int, site: str, values: Sequence[jax.Array]) -> None:
        place, (ref, *rest) = (layer, site), values
        theirs = self._tensors.get(place)
        if theirs is not None:
            self.engine[place] = self._error(site, _live(site, ref, self._tokens), theirs)
        found: dict[int, SiteError] = {}
        apart: dict[int, float] = {}
        for lane, value in enumerate(rest):
            if id(value) not in found:
                found[id(value)] = self._error(site, ref, value)
                if theirs is not None:
                    mine = _live(site, value, self._tokens)
                    apart[id(value)] = self._error(site, mine, theirs).rms
            self.sites[lane][place] = found[id(value)]
            self.distances[lane] |= {place: apart[id(value)]} if apart else {}

    def _error(self, site: str, ref, got) -> SiteError:
        return site_error(site, ref, got, self._tokens)


def costs(
    oracle: Oracle,
    policies: Sequence[Policy],
    token_ids: Sequence[int],
    with_sites: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
    engine: Engine | None = None,
) -> list[Cost]:
    """Each policy against `oracle`, which sets the reference; all tokens in one prefill.

    With the tensors of an `engine`, its own cost comes last, and each policy's `distance` from it.
    """
    lanes = _lanes(oracle, policies, token_ids)
    errors = _Errors(len(policies), len(token_ids), engine)
    add = errors.add if with_sites else lambda layer, site, values: None
    add(MODEL_LAYER, "embed", [lane.run.x_TD for lane in lanes])
    layers = oracle.config.layers
    for layer in range(layers):
        _run_layer(lanes, layer, add)
        progress(layer + 1, layers)
    for lane in lanes:
        lane.tensors = {"resid.in": lane.run.x_TD}
    for op in (FINAL_NORM, LOGITS):
        _run_op(lanes, op, MODEL_LAYER)
        add(MODEL_LAYER, op.site, [lane.tensors[op.site] for lane in lanes])
    lanes[0].oracle.weights.settle()
    ref_TV, *got = (_live("logits", lane.tensors["logits"], len(token_ids)) for lane in lanes)
    parts = zip(errors.sites, got, errors.distances, strict=True)
    found = [cost_of(sites, ref_TV, got_TV, distance) for sites, got_TV, distance in parts]
    return found + ([cost_of(errors.engine, ref_TV, engine[_LOGITS], {})] if engine else [])


def _lanes(oracle: Oracle, policies: Sequence[Policy], token_ids: Sequence[int]) -> list[_Lane]:
    """The reference and every policy, with the tokens embedded."""
    shared = DecodedOnce(oracle.with_policy(Policy.fp64()).weights)
    ids_T, lanes, embedded = np.asarray(token_ids, np.int64), [], {}
    for policy in (oracle.policy, *policies):
        one = oracle.with_policy(policy)
        one.weights = SharedWeights(one.weights, shared)
        run = one.begin(ids_T, one.empty_cache(), Taps())
        how = policy.at("embed", MODEL_LAYER), one.weights.store
        run.x_TD = embedded.setdefault(how, run.x_TD)
        lanes.append(_Lane(one, run, {}))
    return lanes


def _run_layer(lanes: Sequence[_Lane], layer: int, add: Callable) -> None:
    """Oracle.run_layer for all lanes, op by op."""
    for lane in lanes:
        lane.tensors = {**lanes[0].run.sources, "resid.in": lane.run.x_TD}
        rope = lane.oracle.config.rope_of(layer)
        lane.tensors["rotation"] = lanes[0].run.sources["rotation"][rope]
    for op in lanes[0].oracle.ops:
        _run_op(lanes, op, layer)
        add(layer, op.site, [lane.tensors[op.site] for lane in lanes])
    for lane in lanes:
        lane.run.x_TD, lane.tensors = lane.tensors["resid.out"], {}
        for site in KV_SITES:
            lane.run.slabs[site].pop(layer, None)


def _run_op(lanes: Sequence[_Lane], op: Op, layer: int) -> None:
    """One op of all lanes, at the same chunk of its weights; once for those that are equal."""
    groups: dict[tuple, list[_Lane]] = {}
    for lane in lanes:
        how = lane.oracle.policy.at(op.site, layer), lane.oracle.weights.store
        slab = lane.oracle.policy.kv_carrier if op.site in KV_SITES else ""
        inputs = tuple(id(lane.tensors[name]) for name in op.inputs)
        groups.setdefault((how, slab, inputs), []).append(lane)
    firsts = [group[0] for group in groups.values()]
    running = [lane.oracle.applying(op, layer, lane.tensors) for lane in firsts]
    *_, values = zip(*running, strict=True)
    for (first, *rest), value in zip(groups.values(), values, strict=True):
        if op.site in KV_SITES:
            value = first.run.append(op.site, layer, value)
        for lane in (first, *rest):
            lane.tensors[op.site] = value


def _live(site: str, value, tokens: int) -> np.ndarray:
    """Without the rows and slots of padding."""
    rows = np.asarray(value)[:tokens]
    return rows[:, :, :tokens] if _has_slots(site) else rows


def _has_slots(site: str) -> bool:
    return site in ("attn.scores", "attn.probs")


def site_error(site: str, ref, got, tokens: int) -> SiteError:
    """Of the first `tokens` rows (and slots): infinite where `got` is not finite and should be."""
    squares, largest, signal, count, broken = map(float, _sums(ref, got, tokens, _has_slots(site)))
    count = max(count, 1.0)
    if broken:
        return SiteError(np.inf, np.inf, np.sqrt(signal / count))
    return SiteError(np.sqrt(squares / count), largest, np.sqrt(signal / count))


@partial(jax.jit, static_argnames=("slots",))
def _sums(ref, got, tokens, slots):
    """Squares of the errors, the largest, squares of `ref`, how many were compared, any not finite.

    What `ref` masks (scores of -inf) is not compared, but must be masked in `got` too.
    """
    live = jax.lax.broadcasted_iota(jnp.int32, ref.shape, 0) < tokens
    if slots:
        live &= jax.lax.broadcasted_iota(jnp.int32, ref.shape, ref.ndim - 1) < tokens
    ref, got = ref.astype(jnp.float64), got.astype(jnp.float64)
    compared = live & jnp.isfinite(ref)
    error = jnp.where(compared, got - ref, 0)
    broken = live & jnp.where(compared, ~jnp.isfinite(got), got != ref)
    squares, signal = jnp.sum(error**2), jnp.sum(jnp.where(compared, ref, 0) ** 2)
    return squares, jnp.max(jnp.abs(error)), signal, jnp.sum(compared), jnp.any(broken)


def cost_of(
    errors: dict, ref_TV: np.ndarray, got_TV: np.ndarray, distance: Mapping[Place, float]
) -> Cost:
    """Errors of every site, and what they did to the next token."""
    ref_top, got_top = ref_TV.argmax(axis=1), got_TV.argmax(axis=1)
    flips = tuple(int(t) for t in np.flatnonzero(ref_top != got_top))
    first_two = np.sort(ref_TV[list(flips)], axis=1)[:, -2:]
    margins = tuple(float(high - low) for low, high in first_two)
    return Cost(errors, kl_nats(ref_TV, got_TV), flips, margins, distance)
