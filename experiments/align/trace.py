"""Traces: one tensor for each token, layer and site, under a key that says exactly what it is."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from experiments.align import sites
from experiments.align.errors import UnequalKeys


@dataclass(frozen=True, slots=True)
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


def require_same_run(ref: Run, got: Run, spell: Callable[[int], str] = lambda _: "") -> None:
    """Raises UnequalKeys unless both sides processed the same tokens of one prompt and model.

    `spell` writes a token id as its text; empty where that is not known.
    """
    for name in ("model_sha256", "prompt_sha256"):
        left, right = getattr(ref, name), getattr(got, name)
        if left != right:
            raise UnequalKeys(
                f"refusing to compare: {name} is {left!r} in the reference and {right!r} in the "
                "trace under test"
            )
    if differ := tokens_differ(ref.token_ids_T, got.token_ids_T, spell):
        position, left, right = differ
        raise UnequalKeys(
            f"refusing to compare: token ids differ from position {position} on: {left} in the "
            f"reference and {right} in the trace under test, of {len(ref.token_ids_T)} and "
            f"{len(got.token_ids_T)} tokens"
        )


def tokens_differ(
    ref: Sequence[int], got: Sequence[int], spell: Callable[[int], str]
) -> tuple[int, str, str] | None:
    """The first position at which token ids differ, and what each side has there; None if none."""
    for position, pair in enumerate(itertools.zip_longest(ref, got)):
        if pair[0] != pair[1]:
            said = (
                "no token" if one is None else f"{one} ({spell(one)!r})" if spell(one) else f"{one}"
                for one in pair
            )
            return position, *said
    return None


def sha256(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def tensor_sha256(array: np.ndarray) -> str:
    """Hash of the whole tensor: dtype, shape and every byte."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
