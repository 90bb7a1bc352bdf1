"""The law over prompts, as an experiment: which lengths and cuts it was asked at, and kept."""

from collections.abc import Callable, Sequence

from experiments import law
from experiments.align import report
from experiments.align.attestation import why_not_attested
from experiments.align.patterns import ranges
from experiments.flags import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_ORACLE, Config, refuse
from experiments.law import Kept, Law
from experiments.opening import Opened, opened
from experiments.outcome import Outcome
from experiments.progress import Clock
from experiments.reference import Reference
from hip_engine.engine import Engine
from hip_engine.errors import DeviceFault

Further = Callable[[Outcome, Opened, Engine, Reference], None]


def run(
    name: str,
    config: Config,
    clock: Clock,
    lengths: Callable[[Reference], Sequence[int]],
    with_cuts: bool,
    further: Further | None = None,
) -> Outcome:
    """Asks the law of every prompt. `further` adds what else an experiment asks of it."""
    refuse(config, ("kv_scale",), "the floor of the law is measured at scale 1")
    outcome = Outcome(name, config)
    with opened(config, clock) as both:
        with clock.stage("engine load"):
            engine = both.engine()
        outcome.facts |= both.facts(engine)
        for prompt in config.prompt:
            with clock.stage("oracle pass", prompt):
                reference = both.reference(prompt)
            for text in reference.complaints:
                outcome.reasons.append((EXIT_ORACLE, f"{prompt}: oracle self-check: {text}"))
            try:
                _ask(outcome, both, engine, reference, lengths(reference), with_cuts, clock)
                if further:
                    with clock.stage("further", prompt):
                        further(outcome, both, engine, reference)
            except DeviceFault as error:
                outcome.reasons.append((EXIT_FAIL, f"device fault: {prompt}: {error}"))
    return outcome


def _ask(
    outcome: Outcome,
    both: Opened,
    engine: Engine,
    reference: Reference,
    lengths: Sequence[int],
    with_cuts: bool,
    clock: Clock,
) -> None:
    prompt, ids = reference.prompt, reference.token_ids
    with clock.stage("measured floor", prompt):
        floor = law.floor(both.oracle, engine, ids, reference.logits_TV)
    with clock.stage("decode", prompt):
        asked = Law(engine, reference, floor)
    seed = int(reference.trace.run.prompt_sha256[:8], 16)
    cuts = list(law.cuts(len(ids), seed)) if with_cuts else []
    kept: list[Kept] = []
    with clock.counted("law", prompt) as progress:
        for n in lengths:
            kept.append(asked.at(n))
            progress(len(kept), len(lengths) + len(cuts))
        for name, chunks in cuts:
            kept.append(asked.cut(name, chunks))
            progress(len(kept), len(lengths) + len(cuts))
    _report(outcome, prompt, asked, kept, lengths)
    broken = [one for one in kept if not one.holds]
    if broken:
        with clock.stage("replays and bounds", prompt):
            for text in law.blamed(both, engine, reference, broken[0]):
                outcome.lines.append(f"{prompt}: {text}")
    if why := asked.vacuous:
        outcome.reasons.append((EXIT_INCONCLUSIVE, f"{prompt}: vacuous: {why}"))
    seen = asked.attestation
    if why := why_not_attested(str(engine.route), seen.observed, seen.attention_mfma):
        outcome.reasons.append((EXIT_INCONCLUSIVE, f"{prompt}: not attested: {why}"))


def _report(outcome: Outcome, prompt: str, asked: Law, kept: list[Kept], lengths) -> None:
    outcome.tables.append(report.table_law(prompt, kept))
    for one in kept:
        event = {"event": "law", "prompt_id": prompt, "n": one.n, "status": one.status}
        outcome.events.append(event | vars(one))
    broken = [one for one in kept if not one.holds]
    exact = sum(one.equal for one in kept)
    text = f"{prompt}: prefill(n) = prefill(n-1), decode(1) at n = {ranges(lengths)} and "
    text += f"{len(kept) - len(lengths)} other cuts: {exact} of {len(kept)} bit for bit"
    outcome.lines.append(f"{text}; a logit that differs by more than {asked.floor:.3g} would fail")
    kernels = ", ".join(sorted(asked.prefill_symbols - asked.decode_symbols))
    outcome.lines.append(f"{prompt}: kernels of prefill alone: {kernels or 'none'}")
    if broken:
        first = broken[0]
        where = f"n = {first.n}" if first.kind == "length" else first.kind
        tokens = f"top-1 {first.top1[0]} and {first.top1[1]}"
        reason = f"{prompt}: the law breaks first at {where}: logits differ by {first.worst:.3g}"
        reason += f", rounding explains {first.floor:.3g}; {tokens}; {len(broken)} of {len(kept)}"
        outcome.reasons.append((EXIT_FAIL, f"{reason} broken"))
    if not kept:
        outcome.reasons.append((EXIT_INCONCLUSIVE, f"{prompt}: too short to ask the law"))
