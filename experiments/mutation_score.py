"""Scores the tester: injects known faults one by one, and decoys that must not fire.

Every fault of experiments/align/faults.py is a change of the engine's kernels (rebuilt in memory),
of its host code or of its options. For each, the run that follows must fail (detected), at the
right layer and site (placed), and name the mistake if a hypothesis of the oracle is that mistake
(named). Ends with the totals, and writes mutation_score.jsonl to --out_dir.

Examples:
  python -m experiments.mutation_score                                     all, on one prompt
  python -m experiments.mutation_score --faults=quick                      half a minute
  python -m experiments.mutation_score --faults=rope_skipped,pages_of_16_slots
  python -m experiments.mutation_score --prompt=p4_sys --layers=0,1,2,31   another prompt

Exit codes: 0 all as they must be; 1 a fault missed, misplaced or misnamed, or a decoy that fired;
2 bad flags or input.
"""

import sys
from dataclasses import replace

from absl import flags as absl_flags

from experiments import flags

MORE = ((absl_flags.DEFINE_list, "faults", ["all"], "Names of faults and decoys, all, or quick."),)


def main(config: flags.Config, values: absl_flags.FlagValues) -> int:
    flags.configure_jax()
    from experiments import mutation
    from experiments.align import faults

    if dict(config.sources)["prompt"] == "default":
        config = replace(config, prompt=("p5_ba",))
    return mutation.publish(config, faults.chosen(values.faults))


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=MORE))
