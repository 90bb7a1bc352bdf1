"""Traces: one tensor for each token, layer and site, under a key that says exactly what it is."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from experiments.align import sites
from experiments.align.errors import UnequalKeys


@dataclass(frozen=True)
class Key:
    """What a tensor is. Tensors under unequal keys are never compared."""

    model_sha256: str
    prompt_sha256: str
    token_id: int
    position: int
    layer: int
    site: str


@dataclass(frozen=True)
class Run:
    """The tokens one side processed: the part of the key that all tensors of a trace share."""

    model_sha256: str
    prompt_sha256: str
    token_ids_T: tuple[int, ...]

    def key(self, position: int, layer: int, site: str) -> Key:
        token_id = self.token_ids_T[position]
        return Key(self.model_sha256, self.prompt_sha256, token_id, position, layer, site)


@dataclass(frozen=True)
class Trace:
    """Tensors of one side, by (layer, site); each value holds one array for each token of the run.

    A value is one array with T first, or a list of arrays where the shape grows with the position
    (kv.k, kv.v, attn.scores, attn.probs).
    """

    run: Run
    rows_by_place: Mapping[tuple[int, str], Sequence[np.ndarray]]

    def __contains__(self, place: tuple[int, str]) -> bool:
        return place in self.rows_by_place

    def rows(self, layer: int, site: str) -> Sequence[np.ndarray]:
        return self.rows_by_place[layer, site]

    def first_tokens(self, tokens: int) -> "Trace":
        """The same, as if the run had ended after `tokens` tokens."""
        run = replace(self.run, token_ids_T=self.run.token_ids_T[:tokens])
        rows = {place: rows[:tokens] for place, rows in self.rows_by_place.items()}
        return Trace(run, rows)

    def keys(self, layer: int, site: str) -> Iterator[Key]:
        for position in range(len(self.rows_by_place[layer, site])):
            yield self.run.key(position, layer, site)


def require_equal(ref: Key, got: Key) -> None:
    """Raises UnequalKeys naming the first field in which the two keys differ."""
    for field in fields(Key):
        left, right = getattr(ref, field.name), getattr(got, field.name)
        if left != right:
            raise UnequalKeys(
                f"refusing to compare {sites.name(ref.layer, ref.site)}, position {ref.position}: "
                f"{field.name} is {left!r} in the reference and {right!r} in the trace under test"
            )


def require_same_run(ref: Run, got: Run) -> None:
    """Raises UnequalKeys unless both sides processed the same tokens of one prompt and model."""
    if len(ref.token_ids_T) != len(got.token_ids_T):
        raise UnequalKeys(
            f"refusing to compare runs of {len(ref.token_ids_T)} and {len(got.token_ids_T)} tokens"
        )
    for position in range(len(ref.token_ids_T)):
        require_equal(ref.key(position, sites.NO_LAYER, "embed"), got.key(position, -1, "embed"))


def sha256(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def tensor_sha256(array: np.ndarray) -> str:
    """Hash of the whole tensor: dtype, shape and every byte."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
