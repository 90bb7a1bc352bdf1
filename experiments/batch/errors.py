"""Typed errors of suites and their runs."""

from experiments.align.errors import AlignError


class SuiteError(AlignError):
    """A suite file that says something unknown, double or impossible; names file and line."""


class RunLocked(AlignError):
    """Another run writes to the same folder."""


class HistoryError(AlignError):
    """The history cannot be read or written; results stay in the run's own folder."""


class ExecutorError(AlignError):
    """Cells cannot be run the way that was asked for."""
