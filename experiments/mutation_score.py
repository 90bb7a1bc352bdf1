"""Scores the tester: injects known faults one by one, and decoys that must not fire.

Every fault of experiments/align/faults is a change where it would really live: of the engine's
kernels (rebuilt in memory), of its host code or its weights, of the oracle, or of this harness. For
each, the run that follows must fail (detected), at the right layer and site (placed), and name the
mistake: a hypothesis of the oracle is that mistake, or a refusal says so in words (named). Ends
with the totals; mutation_score.jsonl in --out_dir grows while it runs.

Examples:
  python -m experiments.mutation_score                                     all, on one prompt
  python -m experiments.mutation_score --faults=quick                      half a minute
  python -m experiments.mutation_score --faults=rope_skipped,pages_of_16_slots
  python -m experiments.mutation_score --prompt=p4_sys --layers=0,1,2,31   another prompt

Exit codes: 0 all as they must be; 1 a fault missed, misplaced or misnamed, or a decoy that fired;
2 bad flags or input.
"""

import os
import sys
from dataclasses import replace

from absl import flags as absl_flags

from experiments import flags

MORE = (
    (absl_flags.DEFINE_list, "faults", ["all"], "Names of faults and decoys, all, or quick."),
    (absl_flags.DEFINE_integer, "jobs", os.cpu_count(), "Processes that share the faults."),
)


def main(config: flags.Config, values: absl_flags.FlagValues) -> int:
    flags.configure_jax()
    from experiments import mutation
    from experiments.align import faults

    source = dict(config.sources)
    if source["prompt"] == "default":
        config = replace(config, prompt=("p5_ba",))
    if source["layers"] == "default":
        config = replace(config, layers="0,1,2")
    return mutation.publish(config, faults.chosen(values.faults), values.jobs)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=MORE))
