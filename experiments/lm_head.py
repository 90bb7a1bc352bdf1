"""The LM head over the whole vocabulary, on the hidden states that the engine really had."""

import numpy as np

from experiments.align import compare, metrics, sites, trace, verdict
from experiments.arithmetic import OracleArithmetic
from experiments.flags import EXIT_FAIL, EXIT_INCONCLUSIVE
from experiments.opening import Opened
from experiments.outcome import Outcome
from experiments.reference import Reference
from experiments.under_test import Taken
from hip_engine.engine import Engine
from hip_engine.taps import Taps

HEAD = ("final.norm", "logits")


def probe(outcome: Outcome, opened: Opened, engine: Engine, reference: Reference) -> None:
    """Judges the logits of every token, and the choice that was made from them."""
    steps, got = _stepped(engine, reference)
    dims = opened.oracle.config.dimensions
    ops = OracleArithmetic(opened.oracle, dims, engine.precision)
    declared = compare.Declared.of(dims, engine.precision, HEAD)
    arithmetic = ops.as_arithmetic()
    judged = compare.judge_site(
        *(reference.trace, got, arithmetic, declared, sites.NO_LAYER, "logits")
    )
    outcome.verdicts[reference.prompt] = [judged]
    hidden = {"final.norm": got.rows(sites.NO_LAYER, "final.norm")}
    logits64_TV = np.stack(list(ops.op64(sites.NO_LAYER, "logits", hidden)))
    floor_TV = np.stack(list(ops.floor(sites.NO_LAYER, "logits", hidden)["bound"]))
    _judge_choices(outcome, reference, steps, logits64_TV, floor_TV)
    worst = judged.worst
    if judged.status in verdict.FAILED:
        place = f"{reference.prompt}: LM head, position {worst.key.position}"
        outcome.reasons.append((EXIT_FAIL, f"{place}: {worst.status}, {worst.reason}"))
    elif judged.status not in verdict.CLEAN:
        text = f"{reference.prompt}: LM head is {judged.status}: {worst.reason}"
        outcome.reasons.append((EXIT_INCONCLUSIVE, text))
    ratios = [j.ratio_max for j in judged.judgements if j.ratio_max is not None]
    size = metrics.size(np.concatenate([np.ravel(r) for r in judged.ratios]))
    outcome.lines.append(
        f"{reference.prompt}: LM head: {logits64_TV.shape[1]} logits at each of {len(ratios)} "
        f"tokens, worst {size.max:.3g} x the floor, mean {size.mae:.3g} x"
    )


def _stepped(engine: Engine, reference: Reference):
    taken, steps = Taken(()), []
    engine.reset()
    for token in reference.token_ids:
        steps.append(engine.step(token, Taps.of(HEAD)))
        taken.add(steps[-1].taps)
    return steps, trace.Trace(reference.trace.run, taken.rows())


def _judge_choices(outcome: Outcome, reference: Reference, steps, logits64_TV, floor_TV) -> None:
    """The argmax of the device, of its own logits, and of the fp64 logits of its hidden state."""
    for position, step in enumerate(steps):
        own, right = int(step.logits_V.argmax()), int(logits64_TV[position].argmax())
        margin = float(logits64_TV[position, right] - logits64_TV[position, step.top1])
        allowed = float(floor_TV[position, right] + floor_TV[position, step.top1])
        event = {"event": "choice", "prompt_id": reference.prompt, "position": position}
        outcome.events.append(
            event
            | {"top1": step.top1, "top1_of_own_logits": own, "top1_fp64": right}
            | {"margin": margin, "margin_floor": allowed}
        )
        place = f"{reference.prompt}: position {position}: the device chose {step.top1}"
        if step.logits_V[step.top1] != step.logits_V[own]:
            outcome.reasons.append((EXIT_FAIL, f"{place}, the largest of its logits is {own}"))
        elif not margin <= allowed:
            text = f"{place}, fp64 {right} by {margin:.3g}, rounding explains {allowed:.3g}"
            outcome.reasons.append((EXIT_FAIL, text))
