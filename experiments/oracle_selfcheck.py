"""Is the oracle to be believed? Laws that any right answer obeys, on the model at hand, in fp64.

A line a law with the largest error over the floor that rounding explains; then the residual stream
and logits of a made-up prompt beside a forward in torch, where torch is installed. Of the shared
flags only --model and those of the output matter.

Examples:
  python -m experiments.oracle_selfcheck
  python -m experiments.oracle_selfcheck --model=FILE.gguf

Exit codes: 0 every law holds; 2 bad flags or input; 4 a law fails, and no verdict may be given.
"""

import sys

import numpy as np

from experiments import flags, torch_voice

PROMPT = 24


def main(config: flags.Config) -> int:
    flags.configure_jax()
    from experiments import outcome
    from experiments.align import report
    from experiments.progress import Clock
    from greta_jax.model import Oracle
    from greta_jax.precision import Policy
    from greta_jax.selfcheck import selfcheck

    clock, found = Clock(quiet=config.quiet), outcome.Outcome("oracle_selfcheck", config)
    oracle = Oracle.open(config.model, Policy.fp64())
    found.facts = {"model_sha256": oracle.model_sha256}
    with clock.stage("laws"):
        findings = selfcheck(oracle)
    if reason := torch_voice.absent(config.model):
        found.lines.append(f"not run: agreement with torch: {reason}")
    else:
        with clock.stage("torch"):
            findings.append(agrees_with_torch(oracle, torch_voice.TorchLlama(config.model)))
    found.tables.append(report.table_laws(findings))
    held = sum(finding.passed for finding in findings)
    found.lines.append(f"{held} of {len(findings)} laws hold")
    failed = [finding for finding in findings if not finding.passed]
    found.reasons = [(flags.EXIT_ORACLE, str(finding)) for finding in failed]
    return outcome.publish(found, clock)


def agrees_with_torch(oracle, voice):
    """Every layer's residual stream and the logits, over what the roundings of both may do."""
    from greta_jax.precision import unit_roundoff
    from greta_jax.selfcheck import Finding
    from greta_jax.taps import Taps

    c = oracle.config
    ids = np.random.default_rng(0).integers(0, c.vocab, min(PROMPT, c.context))
    step = oracle.prefill(ids, Taps("resid.out"))
    ours = [*(step.taps[layer, "resid.out"] for layer in range(c.layers)), step.logits_TV]
    streams, logits_TV = voice.forward(ids)
    worst = 0.0
    for layer, (ref, got) in enumerate(zip((*streams, logits_TV), ours, strict=True)):
        terms = 4 * c.dim + c.ffn + c.heads * c.head_dim + len(ids)
        floor = (min(layer + 1, c.layers) * terms) * unit_roundoff("float64") * np.abs(ref).max()
        worst = max(worst, float(np.max(np.abs(got - ref) / floor)))
    return Finding("agrees_with_torch", worst)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__))
