"""`python -m experiments.align`: its main is experiments/align_traces.py, outside the wall."""

import sys

from experiments import align_traces

if __name__ == "__main__":
    sys.exit(align_traces.run(sys.argv))
