"""Does the engine give the same bits every time? Runs, threads, kernels: hashes of all they write.

Each prompt is run --runs times on one thread of the emulated device and --runs times on two, each
on a fresh device; the bytes that the host and every launch wrote are hashed, and every site of
every token whole. The first launch whose bytes differ is to blame: all that came before it was
equal. One more run is not watched, and must hold the same tensors: watching changes nothing.

Examples:
  python -m experiments.determinism --prompt=p0_short
  python -m experiments.determinism --prompt=p0_short --route=fused/mfma --runs=5

Exit codes: 0 all equal; 1 a difference, or a device fault; 2 bad flags or input; 3 nothing was
compared, or the device does not say what its kernels wrote.
"""

import sys

from absl import flags as absl_flags

from experiments import flags

RUNS = (absl_flags.DEFINE_integer, "runs", 2, "Runs for each number of threads.")
MORE = (RUNS,)


def main(config: flags.Config, values: absl_flags.FlagValues) -> int:
    if values.runs < 2:
        raise flags.UsageError(f"--runs={values.runs}: at least 2 runs can differ")
    flags.configure_jax()
    from experiments import outcome, repeats
    from experiments.progress import Clock

    clock = Clock(quiet=config.quiet)
    return outcome.publish(repeats.run(config, values.runs, clock), clock)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=MORE))
