"""Is the oracle to be believed? Laws that any right answer obeys, on the model at hand, in fp64.

Prints one line a law with the largest error over the floor that rounding explains. Of the shared
flags only --model and --debug matter.

Examples:
  python -m experiments.oracle_selfcheck
  python -m experiments.oracle_selfcheck --model=FILE.gguf

Exit codes: 0 every law holds; 2 bad flags or input; 4 a law fails, and no verdict may be given.
"""

import sys

from experiments import flags


def main(config: flags.Config) -> int:
    flags.configure_jax()
    from greta_jax.model import Oracle
    from greta_jax.precision import Policy
    from greta_jax.selfcheck import selfcheck

    findings = selfcheck(Oracle.open(config.model, Policy.fp64()))
    print("\n".join(map(str, findings)))
    failed = [finding for finding in findings if not finding.passed]
    return flags.EXIT_ORACLE if failed else flags.EXIT_PASS


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__))
