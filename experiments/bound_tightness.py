"""How tight are the error bounds? Each op in fp32 and bf16 on made-up inputs, beside them.

Prints, a site a line, the largest error seen over its bound: on ordinary inputs with the bound that
follows the partial sums of the order (running), with the one for any order, with the one that fails
with probability 1e-9 an element (likely); and the worst of cancelling, growing, sparse, subnormal
and widely spread inputs under the first. Of the shared flags only --model and --debug matter.

Examples:
  python -m experiments.bound_tightness
  python -m experiments.bound_tightness --order=pairwise --tokens=16

Exit codes: 0 no bound was exceeded; 1 one was; 2 bad flags or input.
"""

import sys

from absl import flags as absl_flags

from experiments import flags

FLAGS = (
    (absl_flags.DEFINE_string, "order", "sequential", "sequential, pairwise or split:<C>."),
    (absl_flags.DEFINE_integer, "tokens", 32, "Rows of each of the seven inputs of an op."),
)


def main(config: flags.Config, values) -> int:
    flags.configure_jax()
    from experiments.bench.tables import aligned
    from experiments.bench.tightness import Case, table
    from greta_jax.model import Oracle
    from greta_jax.precision import Policy

    oracle, exceeded = Oracle.open(config.model, Policy.fp64()), False
    for dtype in ("float32", "bfloat16"):
        found = table(oracle, Case(dtype, values.order), values.tokens)
        exceeded |= any(row["worst"] > 1 for row in found.values())
        rows = [[site, *(f"{ratio:.3g}" for ratio in row.values())] for site, row in found.items()]
        heads = ["site", *next(iter(found.values()))]
        print(aligned(f"{dtype}, {values.order}: error over bound", heads, rows), flush=True)
    return flags.EXIT_FAIL if exceeded else flags.EXIT_PASS


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=FLAGS))
