"""Where it went wrong first: the earliest tensor that its own operation made wrong."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from experiments.align import sites
from experiments.align.verdict import CLEAN, FAILED, UNDECIDED, Judgement, Status


def _when(judgement: Judgement) -> tuple:
    key = judgement.key
    return key.position, *sites.order(key.layer, key.site)


@dataclass(frozen=True)
class Divergence:
    """The first judgement that blames its own op, and what was clean before it.

    `clean_layers` are the judged layers without a local error in any token. `judged_before` counts
    the tensors computed before the divergence, `clean_before` those of them that were clean.
    """

    first: Judgement
    clean_before: int
    judged_before: int
    clean_layers: tuple[int, ...]
    last_clean: Judgement | None

    def sentence(self) -> str:
        key = self.first.key
        before = f"{self.clean_before} of {self.judged_before} tensors before it are clean"
        layers = ", ".join(str(layer) for layer in self.clean_layers) or "none"
        return (
            f"first divergence: {sites.name(key.layer, key.site)}, position {key.position} "
            f"(token {key.token_id}): {self.first.status}, {self.first.reason}; {before}; "
            f"judged layers that are clean throughout: {layers}"
        )


def in_dataflow_order(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Sorted by position, then by the order in which the model computes them."""
    return sorted(judgements, key=_when)


def first_divergence(judgements: Iterable[Judgement]) -> Divergence | None:
    """The first tensor whose *local* error is above its floor; None if no op is to blame."""
    judgements = list(judgements)
    if not any(j.blames_this_op for j in judgements):
        return None
    ordered = in_dataflow_order(judgements)
    blamed = [j for j in ordered if j.blames_this_op]
    before = [j for j in ordered if _when(j) < _when(blamed[0]) and j.status is not Status.FUSED]
    clean = [j for j in before if j.status in CLEAN]
    layers = {j.key.layer for j in ordered if j.key.layer != sites.NO_LAYER}
    guilty = {j.key.layer for j in blamed}
    return Divergence(
        blamed[0],
        len(clean),
        len(before),
        tuple(sorted(layers - guilty)),
        clean[-1] if clean else None,
    )


def counts(judgements: Iterable[Judgement]) -> dict[str, int]:
    """How many tensors ended on each rung."""
    return dict(Counter(str(j.status) for j in judgements))


def undecided(judgements: Iterable[Judgement]) -> list[Judgement]:
    return [j for j in judgements if j.status in UNDECIDED]


def failed(judgements: Iterable[Judgement]) -> list[Judgement]:
    return [j for j in judgements if j.status in FAILED]
