"""One op over all tokens of a trace: attention in blocks of queries that read one slab.

Scores take queries x heads x slots, so that all of them at once would outgrow memory on a long
prompt, and half of them are of slots that are not to be seen.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.align.compare import Rows
from experiments.align.slabs import GrowingSlabs, grew
from experiments.reference import SLOT_SITES
from greta_jax.graph import KV_SITES

ATTENTION_SITES = (*SLOT_SITES, "attn.out")
QUERIES = 128
"""Most queries of a block."""


def over_tokens(function: Callable[[dict], np.ndarray], site: str, inputs: Mapping) -> Rows:
    """`function(inputs)` for all tokens, at once or in blocks."""
    [rows] = over_tokens_each(lambda of_one: [function(one) for one in of_one], site, [inputs])
    return rows


def over_tokens_each(
    function: Callable[[list[dict]], list[np.ndarray]], site: str, mixtures: Sequence[Mapping]
) -> list[Rows]:
    """The same for several inputs, which `function` is given together, block by block."""
    if site in KV_SITES:
        found = function([without(inputs, "slabs") for inputs in mixtures])
        return [
            GrowingSlabs(new_TKH, before(inputs["slabs"]))
            for new_TKH, inputs in zip(found, mixtures, strict=True)
        ]
    if site not in ATTENTION_SITES:
        return function([dict(inputs) for inputs in mixtures])
    parts = [function(block) for block in _blocks(mixtures)]
    return [_joined(site, of_one) for of_one in zip(*parts, strict=True)]


def without(inputs: Mapping, left_out: str) -> dict:
    return {name: value for name, value in inputs.items() if name != left_out}


def before(slabs: Rows) -> Callable[[int], np.ndarray]:
    """The slab that a token found."""
    return lambda token: slabs[token - 1] if token else slabs[0][:0]


def _blocks(mixtures: Sequence[Mapping]):
    """The inputs of each block: its queries, and the slabs that the last of them read.

    Arrays that mixtures share stay shared.
    """
    tokens = len(mixtures[0]["attn.q_rope"])
    slabs = [inputs[name] for inputs in mixtures for name in KV_SITES if name in inputs]
    slabs = list({id(rows): rows for rows in slabs}.values())
    start = 0
    while start < tokens:
        stop, most = start + 1, min(start + QUERIES, tokens)
        while stop < most and all(grew(rows[stop - 1], rows[stop]) for rows in slabs):
            stop += 1
        # One by one where 0 times a NaN of a later slot would reach those that do not see it.
        if not all(np.isfinite(rows[stop - 1]).all() for rows in slabs):
            stop = start + 1
        cut: dict[int, np.ndarray] = {}
        yield [
            {name: _cut(cut, name, value, start, stop) for name, value in inputs.items()}
            for inputs in mixtures
        ]
        start = stop


def _cut(cut: dict[int, np.ndarray], name: str, value, start: int, stop: int) -> np.ndarray:
    if id(value) not in cut:
        cut[id(value)] = value[stop - 1] if name in KV_SITES else np.asarray(value[start:stop])
    return cut[id(value)]


def _joined(site: str, parts: Sequence[np.ndarray]) -> Rows:
    """One array, or a row a token of the slots that were live."""
    if site not in SLOT_SITES:
        return np.concatenate(parts)
    rows: list[np.ndarray] = []
    for part_TNS in parts:
        for row_NS in part_TNS:
            rows.append(row_NS[:, : len(rows) + 1])
    return rows


def square(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of as many slots as were live, with nothing in the others."""
    S = len(rows)
    return np.stack([np.pad(row_NS, ((0, 0), (0, S - row_NS.shape[1]))) for row_NS in rows])
