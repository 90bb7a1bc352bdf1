"""How sure the verdict of an alignment is: what was measured of the judge himself, in one line."""

from collections.abc import Iterator

from experiments.align import sensitivity, sites, sources, verdict
from experiments.align.report import ratio
from experiments.alignment import Alignment
from experiments.flags import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_ORACLE, EXIT_PASS


def sentence(alignment: Alignment) -> str:
    """For every verdict; where nothing was judged, what little there is."""
    by_code = {
        EXIT_PASS: _of_a_pass,
        EXIT_FAIL: _of_a_failure,
        EXIT_INCONCLUSIVE: _of_a_doubt,
        EXIT_ORACLE: _of_no_trust,
    }
    found = [*by_code[alignment.exit_code](alignment), *_of_the_judge(alignment)]
    return "; ".join(found)


def _of_a_pass(alignment: Alignment) -> Iterator[str]:
    yield f"the worst of all local errors is {_worst(_judged(alignment))}"
    yield from _would_have_found(alignment)


def _of_a_failure(alignment: Alignment) -> Iterator[str]:
    first = alignment.first_divergence()
    if first is None:
        yield "no op is to blame: the reasons above are what was seen of bytes, tokens or gates"
        yield from _would_have_found(alignment)
        return
    prompt, found = first
    result = alignment.results[prompt]
    before = [j for j in result.judgements if j.status in verdict.CLEAN]
    at = f"{ratio(found.first.ratio_max)} x its floor" if found.first.ratio_max else "not a number"
    yield f"the first error is {at}, the worst of what is clean {_worst(before)}"
    if result.explained and (naming := result.explained.naming).named:
        other, residual = naming.runner_up()
        yield f"the next explanation, {other}, is {residual:.2g} x the floor away"
    elif result.explained:
        yield "its place is sure, its name is not"


def _of_a_doubt(alignment: Alignment) -> Iterator[str]:
    doubts = sum(code == EXIT_INCONCLUSIVE for code, _ in alignment.reasons())
    clean = [j for j in _judged(alignment) if j.status in verdict.CLEAN]
    yield f"neither pass nor failure, for {doubts} {'reason' if doubts == 1 else 'reasons'} above"
    if clean:
        yield f"of what could be judged, the worst local error is {_worst(clean)}"


def _of_no_trust(alignment: Alignment) -> Iterator[str]:
    yield "not at all: whoever judges failed his own check, so nothing follows for the engine"


def _judged(alignment: Alignment) -> list[verdict.Judgement]:
    found = (j for result in alignment.results.values() for j in result.judgements)
    return [j for j in found if j.ratio_max is not None]


def _worst(judgements: list[verdict.Judgement]) -> str:
    worst = max(judgements, key=lambda j: j.ratio_max or 0.0, default=None)
    if worst is None:
        return "unknown"
    return f"{ratio(worst.ratio_max)} x its floor ({sites.name(worst.key.layer, worst.key.site)})"


def _would_have_found(alignment: Alignment) -> Iterator[str]:
    """The least sensitive place."""
    verdicts = [found for result in alignment.results.values() for found in result.verdicts]
    seen = [(s.relative, v) for v in verdicts if (s := sensitivity.of(v))]
    if seen:
        relative, least = max(seen, key=lambda pair: pair[0])
        place = sites.name(least.layer, least.site)
        yield (
            f"one element wrong by {relative:.2g} of its tensor's rms would have been found "
            f"anywhere that was judged (least easily in {place})"
        )


def _of_the_judge(alignment: Alignment) -> Iterator[str]:
    """Whether floors agree, and what the oracle's own checks left to doubt."""
    ablated = [
        one.ablation_over_bound
        for result in alignment.results.values()
        for one in sources.of(result.verdicts)
        if one.ablation_over_bound is not None
    ]
    if ablated:
        yield f"the declared precision itself reaches {max(ablated):.2g} of its bounds"
    closures = [j.closure_ratio for j in _judged(alignment)]
    if closures:
        yield f"the oracle replays itself to {max(closures):.2g} x its own rounding"
    if alignment.laws:
        worst = max(alignment.laws, key=lambda law: law.ratio)
        kept = sum(law.passed for law in alignment.laws)
        yield (
            f"it keeps {kept} of {len(alignment.laws)} laws, {worst.law} to {worst.ratio:.2g} x "
            f"what rounding allows"
        )
