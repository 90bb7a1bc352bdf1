"""Token flips, explained by rounding or not; and what an engine did to each next token."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from experiments.align import sites, trace
from experiments.align.tokens import Flip, Tokens
from experiments.align.tokens import compare as compare_tokens
from experiments.arithmetic import OracleArithmetic
from experiments.attribution import Attribution, Margin, attribute

EXPLAINED, UNEXPLAINED, NOT_JUDGED = "explained", "unexplained", "not judged"
TOGETHER = 64
"""Flips that share a pass backwards, of which the bounds cost more than all their gradients."""


@dataclass(frozen=True)
class FlipVerdict:
    """`status`: EXPLAINED if rounding alone may close the oracle's margin, UNEXPLAINED if not,
    NOT_JUDGED after the first that is unexplained, or after an op that failed."""

    flip: Flip
    status: str
    why: str

    def sentence(self) -> str:
        flip = self.flip
        return (
            f"position {flip.position}: token {flip.got} instead of {flip.ref}, {self.status}: "
            f"{self.why}"
        )

    def record(self) -> dict:
        return asdict(self.flip) | {"status": self.status, "why": self.why}


@dataclass(frozen=True)
class NextTokens:
    """What one prompt's errors did to the next token, and why.

    `attributions` are of the flips that were judged, or of the position that came nearest to one.
    """

    tokens: Tokens
    flips: tuple[FlipVerdict, ...]
    attributions: tuple[Attribution, ...]

    def sentences(self) -> list[str]:
        found = [self.tokens.sentence(), *(flip.sentence() for flip in self.flips)]
        return found + [attribution.sentence() for attribution in self.attributions]

    def record(self) -> dict:
        return self.tokens.record() | {
            "flips": [flip.record() for flip in self.flips],
            "attributions": [attribution.record() for attribution in self.attributions],
        }


def next_tokens(
    ops: OracleArithmetic,
    ref: trace.Trace,
    got: trace.Trace,
    judged: Sequence[int],
    failed_at: int | None,
) -> NextTokens:
    """Judges every flip before `failed_at`, the position of the first op that failed, and the first
    in any case, up to the first that rounding does not explain."""
    place = sites.NO_LAYER, "logits"
    tokens = compare_tokens(np.asarray(ref.rows(*place)), np.asarray(got.rows(*place)))
    asked = [
        flip
        for i, flip in enumerate(tokens.flips)
        if i == 0 or failed_at is None or flip.position < failed_at
    ]
    verdicts, found, over = [], [], f"an op failed at position {failed_at}"
    while len(verdicts) < len(asked):
        batch = asked[len(verdicts) : len(verdicts) + TOGETHER]
        margins = [Margin(flip.position, flip.ref, flip.got) for flip in batch]
        attributions = attribute(ops, ref, got, judged, margins, with_floor=True)
        for flip, attribution in zip(batch, attributions, strict=True):
            found.append(attribution)
            verdicts.append(_judged(flip, attribution))
            if verdicts[-1].status == UNEXPLAINED:
                over = f"position {flip.position} is unexplained already"
                break
        if verdicts[-1].status == UNEXPLAINED:
            break
    rest = tokens.flips[len(verdicts) :]
    verdicts += [FlipVerdict(flip, NOT_JUDGED, over) for flip in rest]
    if not found:
        near = tokens.closest
        first, second = np.argsort(-np.asarray(ref.rows(*place)[near]), kind="stable")[:2]
        margin = Margin(near, int(first), int(second))
        found += attribute(ops, ref, got, judged, [margin], with_floor=False)
    return NextTokens(tokens, tuple(verdicts), tuple(found))


def _judged(flip: Flip, attribution: Attribution) -> FlipVerdict:
    margin, floor = flip.margin, attribution.floor
    status = EXPLAINED if margin <= floor else UNEXPLAINED
    than = "within" if status == EXPLAINED else "above"
    why = f"the oracle's margin of {margin:.3g} is {than} what rounding may move, {floor:.3g}"
    return FlipVerdict(flip, status, why)
