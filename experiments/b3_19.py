"""B3.19: is a decode step to be accepted?

Theirs compared the top-1 of prefill with the top-1 of the next decode step: tokens of different
positions, which need not be equal. The valid law is asked in its place: prefill(n) ends with the
logits of prefill(n-1), decode(1), at the prompt's end and at every decoded token. Then the LM head
is probed over the whole vocabulary: the engine's logits against fp64 ones made from the hidden
state that it really had, its argmax against its own logits and against those.

Examples:
  python -m experiments.b3_19                                   both prompts
  python -m experiments.b3_19 --route=fused/mfma --max_tokens=8
  python -m experiments.b3_19 --inject_fault=newest_key_dropped    the law holds; b3_20 finds it

Exit codes: 0 accepted; 1 the law breaks or the LM head is wrong; 2 bad flags or input; 3 vacuous or
not attested; 4 the oracle failed its own check.
"""

import sys

from experiments import flags


def main(config: flags.Config) -> int:
    flags.configure_jax()
    from experiments import laws, lm_head, outcome
    from experiments.progress import Clock

    clock = Clock(quiet=config.quiet)
    found = laws.run(
        *("b3_19", config, clock),
        lengths=lambda r: range(max(r.prompt_tokens, 2), len(r.token_ids) + 1),
        with_cuts=False,
        further=lm_head.probe,
    )
    found.sure = (
        "decode and LM head only; errors that prefill shares with decode are b3_20's to find"
    )
    return outcome.publish(found, clock)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__))
