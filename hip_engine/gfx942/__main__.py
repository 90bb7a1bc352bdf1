"""python -m hip_engine.gfx942: gfx942 machine code on this CPU, without a GPU."""

import sys

from hip_engine.gfx942.cli import main

if __name__ == "__main__":
    sys.exit(main())
