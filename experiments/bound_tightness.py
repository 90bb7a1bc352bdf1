"""How tight are the error bounds? Each op in fp32 and bf16 on made-up inputs, beside them.

Prints, an op a line, the largest error seen over its bound: on ordinary inputs with the bound that
follows the partial sums of the order (running), with the one for any order, with the one that fails
with probability 1e-9 an element (likely); and the worst of cancelling, growing, sparse, subnormal
and widely spread inputs under the first. Attention is asked at 64, 1024 and 4096 slots too, matrix
products also in the groups of matrix cores. Of the shared flags only --model and --debug matter.

Examples:
  python -m experiments.bound_tightness
  python -m experiments.bound_tightness --order=pairwise --tokens=16

Exit codes: 0 no bound was exceeded, and every running bound is at most 100 times the largest error
on ordinary inputs; 1 one is not, and is named; 2 bad flags or input.
"""

import sys
from dataclasses import astuple
from itertools import chain

from absl import flags as absl_flags

from experiments import flags

FLAGS = (
    (absl_flags.DEFINE_string, "order", "sequential", "sequential, pairwise or split:<C>."),
    (absl_flags.DEFINE_integer, "tokens", 32, "Rows of each of the seven inputs of an op."),
)
CORES = ("mfma:f16", "mfma:bf16")
HEADS = ("op", "running", "any", "likely", "worst")


def main(config: flags.Config, values) -> int:
    flags.configure_jax()
    from experiments.bench.tables import aligned
    from experiments.bench.tightness import LOOSEST, Case, attention_lines, lines
    from greta_jax.model import Oracle
    from greta_jax.precision import Policy

    oracle, failed = Oracle.open(config.model, Policy.fp64()), []
    cases = [Case(dtype, values.order) for dtype in ("float32", "bfloat16")]
    for case in (*cases, *(Case("float32", order) for order in CORES)):
        name, rows = f"{case.dtype}, {case.order}", []
        for op, found in chain(lines(oracle, case, values.tokens), attention_lines(oracle, case)):
            rows.append([op, *(f"{ratio:.3g}" for ratio in astuple(found))])
            if found.exceeded:
                failed.append(f"{op} ({name}): a bound is exceeded")
            elif found.loose:
                failed.append(f"{op} ({name}): 1/{1 / found.running:.0f} of its running bound")
        print(aligned(f"{name}: error over bound", HEADS, rows), end="\n\n", flush=True)
    for reason in failed:
        print(reason)
    asked = f"bounds hold, and running ones are at most {LOOSEST} times the largest error"
    print(f"bound_tightness: {'FAIL' if failed else 'PASS'} ({asked})")
    return flags.EXIT_FAIL if failed else flags.EXIT_PASS


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=FLAGS))
