"""Typed errors of ablation studies."""

from experiments.align.errors import AlignError


class FactorError(AlignError):
    """A precision factor that cannot be read, or names what no policy or model has."""
