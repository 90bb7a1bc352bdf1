"""Typed errors of the judge."""


class AlignError(Exception):
    """Base of every error the judge raises on purpose: one line with the thing and the remedy."""


class UnequalKeys(AlignError):
    """Two tensors that do not describe the same token, position, layer, site, prompt and model."""


class UnknownSite(AlignError):
    """A site or alias that is not in the contract."""


class InputMissing(AlignError):
    """A tensor that an op read was not captured, or not for every token, or in another shape."""


class UnknownFault(AlignError):
    """A fault that is not in the corpus."""


class FaultNotApplicable(AlignError):
    """A fault whose source text is no longer there, so that injecting it would change nothing."""


class RecordError(AlignError):
    """A results file cannot be written or read."""


class TraceError(AlignError):
    """A stored trace, or the map of its names, is not what it says, or cannot be read at all."""


class FloorsFileError(AlignError):
    """A file of saved floors that cannot be read, or has another schema."""


class FloorsOfAnother(AlignError):
    """Saved floors of another model, prompt or declared precision than those of this run."""
