"""The oracle's side of an alignment: tokens, reference trace, self-check and arithmetic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from experiments.align import compare, sites, trace
from experiments.flags import UsageError, prompt_text
from greta_jax.bounds import bound
from greta_jax.graph import INPUTS, KV_SITES
from greta_jax.model import Oracle
from greta_jax.precision import Policy, unit_roundoff
from greta_jax.replay import replay
from greta_jax.taps import Taps

SLOT_SITES = ("attn.scores", "attn.probs")
ATTENTION_SITES = (*SLOT_SITES, "attn.out")


@dataclass(frozen=True)
class Reference:
    """One prompt under the oracle: the trace of prompt and greedy continuation, and its top-1s.

    `complaints` are the self-checks that failed: a reference with any of them judges nobody.
    """

    prompt: str
    prompt_tokens: int
    trace: trace.Trace
    logits_TV: np.ndarray
    complaints: tuple[str, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.trace.run.token_ids_T

    @property
    def top1_T(self) -> np.ndarray:
        return self.logits_TV.argmax(axis=-1)

    @property
    def expected(self) -> tuple[int, int]:
        """Top-1 after the prompt's last token, and after the first decode step."""
        return int(self.top1_T[self.prompt_tokens - 1]), int(self.top1_T[self.prompt_tokens])


def tokenise(oracle: Oracle, prompt: str, max_tokens: int) -> list[int]:
    """Ids of a prompt, begun as the model's file asks. Raises UsageError if they cannot fit."""
    tokenizer = oracle.tokenizer
    ids = tokenizer.encode(prompt_text(prompt))
    if tokenizer.add_bos and ids[:1] != [tokenizer.bos_id]:
        ids = [tokenizer.bos_id, *ids]
    context = oracle.config.context
    if len(ids) + max_tokens > context:
        raise UsageError(
            f"prompt {prompt} has {len(ids)} tokens and {max_tokens} more are to be decoded, but "
            f"the model's context is {context}: use a shorter prompt or a smaller --max_tokens"
        )
    return ids


def needed_layers(layers: tuple[int, ...], layers_in_model: int) -> tuple[int, ...]:
    """The chosen layers, and those whose output they or final.norm read."""
    before = {layer - 1 for layer in layers if layer > 0}
    return tuple(sorted({*layers, *before, layers_in_model - 1}))


def make_reference(
    oracle: Oracle, prompt: str, max_tokens: int, layers: tuple[int, ...]
) -> Reference:
    """Prefill, greedy decode, then one pass over the whole sequence with every site tapped."""
    ids = tokenise(oracle, prompt, max_tokens)
    step = oracle.prefill(ids)
    logits = [step.logits_TV[-1]]
    sequence = list(ids)
    for _ in range(max_tokens):
        sequence.append(int(logits[-1].argmax()))
        step = oracle.decode(step.cache, sequence[-1])
        logits.append(step.logits_TV[-1])
    taps = Taps(sites.SITES, needed_layers(layers, oracle.config.layers))
    whole = oracle.prefill(sequence, taps=taps)
    run = trace.Run(oracle.model_sha256, trace.sha256(prompt_text(prompt)), tuple(sequence))
    rows = {place: _rows(place[1], value) for place, value in whole.taps.items()}
    stepwise_TV = np.stack(logits)
    complaints = [
        *_weights_sum_to_one(oracle, rows),
        *_prefill_equals_decode(oracle, whole.logits_TV, stepwise_TV, sequence),
    ]
    return Reference(prompt, len(ids), trace.Trace(run, rows), whole.logits_TV, tuple(complaints))


def _rows(site: str, value: np.ndarray) -> compare.Rows:
    """One array a token: the slots that were live when that token was processed."""
    if site in KV_SITES:
        return [value[: position + 1] for position in range(len(value))]
    if site in SLOT_SITES:
        return [row_NS[:, : position + 1] for position, row_NS in enumerate(value)]
    return value


def _weights_sum_to_one(oracle: Oracle, rows) -> list[str]:
    """Softmax rows: S-1 roundings in its sum, one division, S-1 in ours."""
    u = unit_roundoff(oracle.policy.compute)
    found = []
    for (layer, site), probs in rows.items():
        if site != "attn.probs":
            continue
        for position, row_NS in enumerate(probs):
            slots = row_NS.shape[1]
            off = np.abs(row_NS.sum(axis=-1, dtype=np.float64) - 1).max()
            if not off <= 2 * slots * u / (1 - 2 * slots * u):
                found.append(
                    f"attention weights of layer {layer} at position {position} sum to 1 "
                    f"only within {off:.3g}"
                )
    return found[:1]


def _prefill_equals_decode(oracle: Oracle, whole_TV, stepwise_TV, sequence) -> list[str]:
    """The law prefill(n) = prefill(n-1) then decode(1), to the rounding noise of this model.

    `stepwise_TV` holds the last rows, from the prompt's last token on, as decode computed them.

    The noise is measured and not assumed: the distance between the oracle in fp32 and in fp64,
    scaled by the ratio of their roundoffs, is what this model makes of typical rounding. Two
    evaluations may differ by twice that, and worst-case rounding of a sum of n terms exceeds the
    typical by sqrt(n).
    """
    logits_TV = {oracle.policy: whole_TV}
    for policy in (Policy.fp32(), Policy.fp64()):
        if policy != oracle.policy:
            logits_TV[policy] = oracle.with_policy(policy).prefill(sequence).logits_TV
    distance = np.abs(logits_TV[Policy.fp32()].astype(np.float64) - logits_TV[Policy.fp64()])
    noise = distance.max() / unit_roundoff("float32")
    config = oracle.config
    terms = max(config.dim, config.ffn, len(sequence))
    floor = 2 * np.sqrt(terms) * noise * unit_roundoff(oracle.policy.compute)
    off = np.abs(whole_TV[-len(stepwise_TV) :].astype(np.float64) - stepwise_TV).max()
    if off <= floor:
        return []
    return [f"prefill and decode logits differ by {off:.3g}, rounding explains {floor:.3g}"]


class OracleArithmetic:
    """op64 and the bounds, over a trace of either side."""

    def __init__(self, oracle: Oracle, dims: dict[str, int], engine_precision: dict):
        self.fp64 = oracle.with_policy(Policy.fp64())
        self.layers, self.dims, self.engine_precision = oracle.config.layers, dims, engine_precision
        self.policy = oracle.policy

    def as_arithmetic(self) -> compare.Arithmetic:
        return compare.Arithmetic(self.inputs, self.op64, self.floor, self.closure)

    def inputs(self, side: trace.Trace, layer: int, site: str) -> dict:
        """What the op read, by the names of INPUTS; for the cache also its slab of each step."""
        tokens = len(side.run.token_ids_T)
        read = {}
        for name in INPUTS[site]:
            if name == "token_ids":
                read[name] = np.asarray(side.run.token_ids_T)
            elif name == "positions":
                read[name] = np.arange(tokens)
            elif name == "resid.in":
                place = self._before(layer, site)
                read[name] = compare.captured(side, *place, self.dims)
            else:
                read[name] = compare.captured(side, layer, name, self.dims)
        if site in KV_SITES:
            read["slabs"] = compare.captured(side, layer, site, self.dims)
        return read

    def _before(self, layer: int, site: str) -> tuple[int, str]:
        if site == "final.norm":
            return self.layers - 1, "resid.out"
        return (layer - 1, "resid.out") if layer else (sites.NO_LAYER, "embed")

    def op64(self, layer: int, site: str, inputs: dict) -> compare.Rows:
        return self._evaluate(partial(replay, self.fp64), layer, site, inputs)

    def floor(self, layer: int, site: str, inputs: dict) -> dict[str, compare.Rows]:
        """First version: the a-priori bound at the precision the engine declares."""
        declared = self.engine_precision[site]
        return {"bound": self._bounds(declared, layer, site, inputs)}

    def closure(self, layer: int, site: str, inputs: dict) -> compare.Rows:
        """The bound at the oracle's own precision."""
        store = self.policy.kv if site in KV_SITES else self.policy.activation
        declared = {"store": store, "accumulate": self.policy.compute}
        return self._bounds(declared, layer, site, inputs)

    def _bounds(self, declared, layer: int, site: str, inputs: dict) -> compare.Rows:
        def evaluate(site, layer, inputs):
            return bound(self.fp64, site, layer, inputs, declared)

        if site in KV_SITES:
            # Slots of earlier tokens are to be kept, bit for bit.
            new_TKH = evaluate(site, layer, _without_slabs(inputs))
            return GrowingSlabs(new_TKH, lambda t: np.zeros((t, *new_TKH.shape[1:])))
        return self._evaluate(evaluate, layer, site, inputs)

    def _evaluate(self, function, layer: int, site: str, inputs: dict) -> compare.Rows:
        """`function(site, layer, inputs)` for all tokens, at once where their inputs allow it."""
        if site in KV_SITES:
            new_TKH = function(site, layer, _without_slabs(inputs))
            slabs = inputs["slabs"]
            return GrowingSlabs(new_TKH, lambda t: slabs[t - 1] if t else new_TKH[:0])
        if site not in ATTENTION_SITES:
            return function(site, layer, inputs)
        slabs = [name for name in KV_SITES if name in inputs]
        if all(_append_only(inputs[name]) for name in slabs):
            last = {name: inputs[name][-1] for name in slabs}
            return _rows(site, function(site, layer, {**inputs, **last}))
        rows = []
        for position, q_NH in enumerate(inputs["attn.q_rope"]):
            then = {name: inputs[name][position] for name in slabs}
            rows.append(function(site, layer, {"attn.q_rope": q_NH[None], **then})[0])
        return rows


class GrowingSlabs(Sequence):
    """Token t's slab: `earlier(t)`, its first t slots, and then the row it appended.

    Made when asked for: all of them together grow with the square of the tokens.
    """

    def __init__(self, new_TKH: np.ndarray, earlier: Callable[[int], np.ndarray]):
        self._new_TKH, self._earlier = new_TKH, earlier

    def __len__(self) -> int:
        return len(self._new_TKH)

    def __getitem__(self, token: int) -> np.ndarray:
        if not 0 <= token < len(self):
            raise IndexError(token)
        earlier = self._earlier(token).astype(np.float64)
        return np.concatenate([earlier, self._new_TKH[token : token + 1]])


def _without_slabs(inputs: dict) -> dict:
    return {name: value for name, value in inputs.items() if name != "slabs"}


def _append_only(slabs: compare.Rows) -> bool:
    """Whether no step changed a slot of an earlier one: then one slab serves all tokens."""
    last_SKH = slabs[-1]
    return all(
        slab_SKH.base is not None
        and slab_SKH.base is last_SKH.base
        or np.array_equal(slab_SKH, last_SKH[: len(slab_SKH)], equal_nan=True)
        for slab_SKH in slabs
    )
