"""Replays one failed op from the folder that a failed run left, and nothing else of the run.

On the oracle: the op in fp64 on the inputs that the engine really had, and the engine's own error
over its floor again. On the emulated device: the op's launches, from the same code object, with the
same arguments and memory. Says whether both are what the run recorded, bit for bit.

Examples:
  python -m experiments.b3_20 --prompt=p0_short --inject_fault=kv_base_of_layer_0 --out_dir=out
  python -m experiments.replay_op --bundle=out/b3_20_p0_short_repro

Exit codes: 0 the op is within its floor; 1 it fails, as recorded; 2 no bundle, or another model; 3
what came out is not what was recorded, or the launches were not captured.
"""

import sys

from absl import flags as absl_flags

from experiments import flags

BUNDLE = (absl_flags.DEFINE_string, "bundle", "", "Folder of a failed op.")
MORE = (BUNDLE,)


def main(config: flags.Config, values: absl_flags.FlagValues) -> int:
    if not values.bundle:
        raise flags.UsageError("--bundle=FOLDER is needed: a failed run writes <name>_repro")
    flags.configure_jax()
    from experiments import outcome, replaying
    from experiments.progress import Clock

    clock = Clock(quiet=config.quiet)
    return outcome.publish(replaying.run(config, values.bundle, clock), clock)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=MORE))
