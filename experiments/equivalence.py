"""Is a prompt the same however it is fed? prefill(n) against prefill(n-1), decode(1), for every n.

Compares all logits of the last row at every n (up to 34, then around every page and at the end),
and every row of the prompt prefilled in chunks of 2 to 32 and in random ones, with decode's own.
Where the two differ by more than rounding explains, prints the first n that breaks, and judges
every op of both sides on the inputs that it had: prefill or decode is to blame, and where.

Examples:
  python -m experiments.equivalence                                  both prompts, manual/valu
  python -m experiments.equivalence --route=fused/mfma --prompt=p4_sys
  python -m experiments.equivalence --prompt=p6_long --max_tokens=1  over 500 tokens: minutes

Exit codes: 0 the law holds; 1 it breaks, or a device fault; 2 bad flags or input; 3 vacuous or not
attested; 4 the oracle failed its own check.
"""

import sys

from experiments import flags


def main(config: flags.Config) -> int:
    flags.configure_jax()
    from experiments import law, laws, outcome
    from experiments.progress import Clock

    clock = Clock(quiet=config.quiet)
    found = laws.run(
        *("equivalence", config, clock),
        lengths=lambda reference: law.lengths(len(reference.token_ids)),
        with_cuts=True,
    )
    found.sure = "every logit compared; both sides ran the kernels named above"
    return outcome.publish(found, clock)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__))
