"""Faults of the harness."""

from experiments.align.faults.fault import Fault, patch

HARNESS = ()
