"""Mistakes of attention in what it reads: keys, values, heads, positions, layers."""

from dataclasses import replace

import numpy as np

from greta_jax.hypotheses.question import Hypothesis, Question, Tensors, early, named
from greta_jax.precision import Policy

WINDOW = 64
"""Keys that R8's reference summed."""
CHUNKS = (16, 32, 64)
"""Tokens of a pass of a chunked prefill."""
PAGES = (16, 64, 256)


def positions_of(q: Question) -> np.ndarray:
    S, T = len(q.inputs["kv.k"]), len(q.inputs["attn.q_rope"])
    return np.asarray(q.inputs.get("positions", np.arange(S - T, S)))


def seeing_until(q: Question, positions: np.ndarray) -> np.ndarray | None:
    """Queries that see the keys up to other positions; NaN for those that then see none."""
    if positions.max() < 0:
        return None
    answer = np.array(q.ask(positions=np.maximum(positions, 0)))
    answer[positions < 0] = np.nan
    return answer


def newest_key_missing(q: Question):
    """R5: pos keys are read where pos + 1 are there."""
    return seeing_until(q, positions_of(q) - 1)


def _other_layer(q: Question, layer: int):
    slabs = {name: q.others.get((layer, name)) for name in ("kv.k", "kv.v") if name in q.inputs}
    if layer == q.layer or any(slab is None for slab in slabs.values()):
        return None
    return q.evaluate(q.oracle, q.site, q.layer, q.inputs | slabs)


def kv_base_of_layer_0(q: Question):
    """R7: the KV base lacks its layer offset."""
    return _other_layer(q, 0)


def kv_base_of_previous_layer(q: Question):
    """The KV base of the layer before."""
    return _other_layer(q, q.layer - 1)


def _one_by_one(q: Question, starts: np.ndarray) -> np.ndarray | None:
    """Each query on the slots from its start to its own; attn.out only."""
    positions = positions_of(q)
    if q.site != "attn.out" or not starts.any():
        return None
    answer = np.array(q.ask())
    for t in np.flatnonzero(starts):
        slots = slice(starts[t], positions[t] + 1)
        inputs = {name: q.inputs[name][slots] for name in ("kv.k", "kv.v")}
        inputs["attn.q_rope"] = q.inputs["attn.q_rope"][t : t + 1]
        answer[t] = q.evaluate(q.oracle, q.site, q.layer, inputs)[0]
    return answer


def last_64_keys_only(q: Question):
    """R8: only the newest keys are summed."""
    return _one_by_one(q, np.maximum(positions_of(q) + 1 - WINDOW, 0))


def _own_chunk_only(chunk: int) -> Hypothesis:
    def hypothesis(q: Question):
        positions = positions_of(q)
        in_batch = q.in_batch(len(positions))
        return _one_by_one(q, np.where(in_batch, positions // chunk * chunk, 0))

    hypothesis.__name__ = f"cache_ignored_in_chunks_of_{chunk}"
    hypothesis.__doc__ = "L13: queries see the keys of their own pass only."
    return hypothesis


def _whole_chunk_seen(chunk: int) -> Hypothesis:
    def hypothesis(q: Question):
        positions = positions_of(q)
        in_batch = q.in_batch(len(positions))
        if not in_batch.any():
            return None
        ends = np.minimum(positions // chunk * chunk + chunk - 1, positions[in_batch].max())
        ends = np.where(in_batch, ends, positions)
        return None if np.array_equal(ends, positions) else q.ask(positions=ends)

    hypothesis.__name__ = f"causal_mask_missing_in_chunks_of_{chunk}"
    hypothesis.__doc__ = "Every query sees the whole of its pass."
    return hypothesis


def causal_mask_missing(q: Question):
    """Every query sees the whole slab."""
    last = len(q.inputs["kv.k"]) - 1
    positions = positions_of(q)
    return None if positions.min() == last else q.ask(positions=np.full_like(positions, last))


def kv_head_is_n_mod_k(q: Question):
    """G1: query head n reads kv head n % K where it is n / G."""
    heads, kv_heads = q.oracle.config.heads, q.oracle.config.kv_heads
    if kv_heads == 1 or heads == kv_heads:
        return None
    order = np.argsort(np.arange(heads) % kv_heads, kind="stable")
    answer = q.ask(attn__q_rope=q.inputs["attn.q_rope"][:, order])
    return answer[:, np.argsort(order)]


def _slabs(q: Question, change) -> np.ndarray:
    slabs = {name: change(q.inputs[name]) for name in ("kv.k", "kv.v") if name in q.inputs}
    return q.evaluate(q.oracle, q.site, q.layer, q.inputs | slabs)


def kv_heads_reversed(q: Question):
    """kv head K - 1 - k is read for k."""
    return _slabs(q, lambda slab: slab[:, ::-1]) if q.oracle.config.kv_heads > 1 else None


def keys_read_one_slot_early(q: Question):
    """K is read at slot - 1; V where it is."""
    return q.ask(kv__k=early(q.inputs["kv.k"], 1))


def values_read_one_slot_early(q: Question):
    """V is read at slot - 1; K where it is."""
    return q.ask(kv__v=early(q.inputs["kv.v"], 1))


def _page_early(page: int) -> Hypothesis:
    def hypothesis(q: Question):
        if len(q.inputs["kv.k"]) <= page:
            return None
        return _slabs(q, lambda slab: np.concatenate([slab[:page], slab[:-page]]))

    hypothesis.__name__ = f"read_a_page_of_{page}_early"
    hypothesis.__doc__ = "From the second page on, K and V of the page before are read."
    return hypothesis


def keys_and_values_swapped(q: Question):
    """Scores from V, and K summed."""
    return q.ask(kv__k=q.inputs["kv.v"], kv__v=q.inputs["kv.k"])


def _keys_for(q: Question, names: tuple[str, ...]) -> Tensors:
    return {name: 2 * np.asarray(q.inputs[name], np.float64) for name in names if name in q.inputs}


def cache_read_at_twice(q: Question):
    """fp8 stored as FNUZ and read as FN: the bias is one less, and every number twice as large."""
    both = _keys_for(q, ("kv.k", "kv.v"))
    return q.evaluate(q.oracle, q.site, q.layer, q.inputs | both)


def queries_not_rotated(q: Question):
    """Scores of q as it was projected."""
    tensor = q.others.get((q.layer, "attn.q"))
    return None if tensor is None else q.ask(attn__q_rope=tensor)


def _score_factor(name: str, meaning: str, factor) -> Hypothesis:
    def hypothesis(q: Question):
        query = np.asarray(q.inputs["attn.q_rope"], np.float64)
        return q.ask(attn__q_rope=query * factor(q.oracle.config))

    hypothesis.__name__, hypothesis.__doc__ = name, meaning
    return hypothesis


def fp16_accumulation(q: Question):
    """G3: sums kept in half precision, one term after the other."""
    half = {"score": "float16", "softmax": "float16", "pv": "float16", "order": "sequential"}
    answer = q.under(replace(Policy.fp64(), name="fp16 accumulation", **half)).astype(np.float64)
    return np.where(np.isnan(answer), np.inf, answer)  # it says so: these overflow


def heads_and_elements_transposed(q: Question):
    """The result is stored [H, N] where [N, H] is read."""
    answer = np.asarray(q.ask())
    return answer.transpose(0, 2, 1).reshape(answer.shape)


SCORES = named(
    newest_key_missing,
    kv_base_of_layer_0,
    kv_base_of_previous_layer,
    kv_head_is_n_mod_k,
    kv_heads_reversed,
    keys_read_one_slot_early,
    queries_not_rotated,
    _score_factor("scale_missing", "Scores without 1/sqrt(H).", lambda c: c.head_dim**0.5),
    _score_factor(
        "scale_is_1_over_h", "Scores over H where it is its root.", lambda c: c.head_dim**-0.5
    ),
    _score_factor(
        "scale_is_1_over_root_d",
        "Scores over the root of the model's width.",
        lambda c: (c.head_dim / c.dim) ** 0.5,
    ),
    _score_factor("powers_of_2", "2^x for e^x: log2(e) left out.", lambda c: np.log(2.0)),
    causal_mask_missing,
    *map(_page_early, PAGES),
    fp16_accumulation,
)
OUT = SCORES | named(
    last_64_keys_only,
    values_read_one_slot_early,
    keys_and_values_swapped,
    cache_read_at_twice,
    heads_and_elements_transposed,
    *map(_own_chunk_only, CHUNKS),
    *map(_whole_chunk_seen, CHUNKS),
)
SHOWS = {
    "kv_base_of_layer_0": "where layer 0 is judged too, from layer 2 on",
    "kv_base_of_previous_layer": "where the layer before is judged too, from layer 2 on",
    "newest_key_missing": "from the second token on",
    "last_64_keys_only": f"beyond {WINDOW} keys",
    "keys_read_one_slot_early": "from the third token on",
    "values_read_one_slot_early": "from the second token on",
    "fp16_accumulation": "where scores are small: it rounds the sums of values too",
    "causal_mask_missing": "in a prefill of several tokens",
    **{f"cache_ignored_in_chunks_of_{n}": f"beyond {n} tokens" for n in CHUNKS},
    **{f"causal_mask_missing_in_chunks_of_{n}": f"beyond {n} tokens" for n in CHUNKS},
    **{f"read_a_page_of_{n}_early": f"beyond {n} slots" for n in PAGES},
}
