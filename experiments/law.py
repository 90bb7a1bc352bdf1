"""The law that decode obeys: prefill(n) ends where prefill(n-1), decode(1) does, however it is cut.

Both sides of it are the engine, on the same tokens: no oracle is needed to break it, and none to
keep it wrongly, since the two run different kernels. The floor is zero where they agree bit for
bit; else it is measured: twice the largest distance of the oracle's logits, evaluated with the
dtypes that the engine declares, from its fp64 logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.align import compare, divergence, trace
from experiments.arithmetic import OracleArithmetic
from experiments.opening import Opened
from experiments.reference import Reference, needed_layers
from experiments.under_test import Taken
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from hip_engine.engine import Engine
from hip_engine.taps import Taps

EVERY_LENGTH_TO = 34
"""Past the tiles of 16 and 32; longer prompts are cut at the next boundaries only."""
PAGE = 64
CHUNKS = (2, 3, 5, 8, 15, 16, 17, 31, 32)


@dataclass(frozen=True)
class Kept:
    """The law at one length or cut.

    parts: the passes of either side, as numbers of tokens; one of 1 is a decode step. worst:
    largest difference of a logit; equal: all bits.
    """

    kind: str
    parts: tuple[tuple[int, ...], tuple[int, ...]]
    equal: bool
    worst: float
    floor: float
    top1: tuple[int, int]

    @property
    def n(self) -> int:
        return sum(self.parts[0])

    @property
    def holds(self) -> bool:
        return self.equal or self.worst <= self.floor

    @property
    def status(self) -> str:
        return "exact" if self.equal else "within_floor" if self.holds else "above_floor"


def lengths(tokens: int) -> list[int]:
    """The n at which prefill(n) is compared; 1 is not among them: both sides would be one step."""
    near = {m + d for m in range(PAGE, tokens + 1, PAGE) for d in (-1, 0, 1)}
    chosen = {*range(2, EVERY_LENGTH_TO + 1), *near, tokens}
    return sorted(n for n in chosen if 2 <= n <= tokens)


def cuts(tokens: int, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Name and chunk lengths: equal ones, and one random cut."""
    for size in CHUNKS:
        if size < tokens:
            yield f"chunks of {size}", [min(size, tokens - at) for at in range(0, tokens, size)]
    if tokens > 2:
        rng = np.random.default_rng(seed)
        marks = np.sort(rng.choice(np.arange(1, tokens), size=max(1, tokens // 5), replace=False))
        random = np.diff([0, *marks, tokens]).tolist()
        yield f"random chunks of {min(random)} to {max(random)}", random


def floor(oracle: Oracle, engine: Engine, token_ids: Sequence[int], logits64_TV) -> float:
    """Twice what the declared dtypes move a logit by."""
    declared = [*engine.precision.values(), *engine.prefill_precision.values()]
    projected = engine.prefill_precision["attn.q"].get("operand", "float32")
    policy = Policy(
        *("declared", projected, projected, engine.precision["kv.k"]["store"], "float32"),
        probs=next((d["operand"] for d in declared if "operand" in d), None),
    )
    moved_TV = oracle.with_policy(policy).prefill(token_ids).logits_TV.astype(np.float64)
    return 2 * float(np.abs(moved_TV - logits64_TV).max())


class Law:
    """One prompt on one engine: decode's rows, taken once, and prefill's to compare with them."""

    def __init__(self, engine: Engine, reference: Reference, floor: float):
        self.engine, self.ids, self.floor = engine, list(reference.token_ids), floor
        engine.reset()
        self.decoded = [engine.step(token) for token in self.ids]
        self.attestation = engine.attest()
        self.decode_symbols = set(self.attestation.symbols)
        self.prefill_symbols: set[str] = set()

    def at(self, n: int) -> Kept:
        """prefill(n) against prefill(n-1), decode(1)."""
        self.engine.reset()
        self.engine.prefill(self.ids[: n - 1])
        after = self.engine.step(self.ids[n - 1])
        self.engine.reset()
        whole = self.engine.prefill(self.ids[:n])[-1]
        self._note()
        return self._kept("length", ((n,), (n - 1, 1)), [whole], [after])

    def cut(self, name: str, chunks: Sequence[int]) -> Kept:
        """Every row of a prompt that is prefilled in chunks, against decode's."""
        self.engine.reset()
        rows, at = [], 0
        for size in chunks:
            rows += self.engine.prefill(self.ids[at : at + size])
            at += size
        self._note()
        parts = tuple(chunks), (1,) * len(rows)
        return self._kept(name, parts, rows, self.decoded)

    def _note(self) -> None:
        self.prefill_symbols |= set(self.engine.attest("prefill").symbols)

    def _kept(self, kind: str, parts, left: Sequence, right: Sequence) -> Kept:
        pairs = [(a.logits_V, b.logits_V) for a, b in zip(left, right, strict=True)]
        equal = all(np.array_equal(a, b) for a, b in pairs)
        with np.errstate(invalid="ignore"):
            worst = max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs)
        worst = float("inf") if np.isnan(worst) else worst
        return Kept(kind, parts, equal, worst, self.floor, (left[-1].top1, right[-1].top1))

    @property
    def vacuous(self) -> str:
        """Why comparing the two says nothing; empty if they ran different kernels."""
        if self.prefill_symbols - self.decode_symbols:
            return ""
        return "prefill ran no kernel that decode does not run"


def blamed(opened: Opened, engine: Engine, reference: Reference, broken: Kept) -> list[str]:
    """Which side is wrong where the law breaks: every op of both judged on its own inputs."""
    found = []
    for parts in broken.parts:
        got = _traced(opened, engine, reference, parts)
        captured = {site for _, site in got.rows_by_place}
        declared = compare.Declared.of(
            opened.oracle.config.dimensions, engine.precision, captured & set(engine.sites)
        )
        precision = engine.prefill_precision | engine.precision
        ops = OracleArithmetic(opened.oracle, declared.dims, precision).as_arithmetic()
        ref = reference.trace.first_tokens(broken.n)
        verdicts = compare.judge_all(ref, got, ops, declared, opened.layers, opened.sites)
        first = divergence.first_divergence(j for v in verdicts for j in v.judgements)
        told = first.sentence() if first else "no op of the judged layers is to blame"
        found.append(f"fed {_shown(parts)}: {told}")
    return found


def _shown(parts: Sequence[int]) -> str:
    return "token by token" if set(parts) == {1} else " + ".join(map(str, parts))


def _traced(opened: Opened, engine: Engine, reference: Reference, parts: Sequence[int]):
    layers = needed_layers(opened.layers, opened.oracle.config.layers)
    taken, ids, at = Taken(opened.layers), list(reference.token_ids), 0
    engine.reset()
    for size in parts:
        for step in engine.prefill(ids[at : at + size], Taps.of(engine.sites, layers)):
            taken.add(step.taps)
        at += size
    return trace.Trace(reference.trace.first_tokens(at).run, taken.rows())
