"""How fast this CPU runs gfx942 code, what bounds it, and torch beside it, all in one run.

  python -m hip_engine.gfx942 bench

Speeds are of the emulation on this machine, not of an MI300X.
"""

import argparse

from hip_engine.gfx942 import bench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none: every run measures the same things."""


def main(options: argparse.Namespace) -> int:
    bench.main()
    return 0
