"""Faults of the oracle."""

from experiments.align.faults.fault import Fault, patch

ORACLE = ()
