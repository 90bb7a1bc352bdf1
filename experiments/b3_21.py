"""B3.21: attention on matrix cores against its shadow on vector units, on the same inputs.

Theirs compared a kernel with itself (no decode route ran a matrix core), and fused/mfma failed at
load. Here each launch of an mfma kernel is followed by the valu kernel on the same arguments; both
are judged against fp64 on those inputs, each at its own declared precision. Outputs that are equal
bit for bit, or matrix-core counts that do not say what the names say, are vacuous: no pass. Each
route is loaded first, and every weight read back from the device.

Examples:
  python -m experiments.b3_21                                    manual/mfma and fused/mfma
  python -m experiments.b3_21 --route=fused/mfma --prompt=p4_sys --layers=all

Exit codes: 0 pass; 1 either kernel above its floor, or a route that does not load; 2 bad flags or
input; 3 vacuous or not attested; 4 the oracle failed its own check.
"""

import sys

from experiments import flags


def main(config: flags.Config) -> int:
    flags.configure_jax()
    from experiments import outcome, shadows
    from experiments.progress import Clock

    clock = Clock(quiet=config.quiet)
    return outcome.publish(shadows.run(config, clock), clock)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__))
