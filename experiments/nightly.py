"""Nightly: every cell of a suite, whatever happens to the others; margins kept from night to night.

A suite is a YAML file of models x prompts x routes x KV dtypes x experiments. Each cell is a
process with a time and a memory limit; a finished one is not run again at the same commit. Writes
results.jsonl, nightly.xml (JUnit), nightly.md (also to $GITHUB_STEP_SUMMARY), nightly.html and a
history of margins, in which an error that grows is flagged before it reaches its floor.

Examples:
  python -m experiments.nightly --suite=experiments/suites/nightly.yaml
  python -m experiments.nightly --suite=experiments/suites/quick.yaml --jobs=2
  python -m experiments.nightly --suite=mine.yaml --history=/srv/margins.sqlite
  python -m experiments.nightly --suite=mine.yaml --executor=ray --ray_address=auto
  python -m experiments.nightly --suite=mine.yaml --list       the cells; none is run

Exit codes: 0 every cell passed; 1 a cell failed; 2 bad flags, suite or folder, or a refused cell;
3 a cell timed out, crashed, was not finished or showed nothing; 4 the oracle failed its own check.
"""

import signal
import sys
from pathlib import Path

from absl import flags

from experiments.align.errors import AlignError
from experiments.batch import night, options, store, suite, terminal
from experiments.revision import commit


def main(argv: list[str]) -> int:
    if any(argument in ("--help", "-h", "--helpfull") for argument in argv[1:]):
        print(options.help_text(__doc__))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asked = options.parse(argv)
        chosen = suite.load(asked.suite, options.CHECKS)
        if asked.list:
            print(*(cell.shown_command() for cell in chosen.cells), sep="\n")
            return 0
        with store.locked(asked.out_dir):
            runner = night.Runner(chosen, asked, commit())
            with terminal.progress(asked, len(chosen.cells), len(runner.waiting)) as callbacks:
                runner.run(*callbacks)
            found = runner.finish()
            terminal.show(asked, found)
    except (AlignError, flags.Error) as error:
        print(f"{Path(argv[0]).stem}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return found.exit_code or (2 if runner.unsaved else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
