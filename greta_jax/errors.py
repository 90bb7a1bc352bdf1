"""Typed errors of the oracle. Every message is one line: what is wrong, where, and the remedy."""


class OracleError(Exception):
    """Base of every error that greta_jax raises on purpose."""

    def __init__(self, what: str, *, where: str = "", remedy: str = ""):
        self.what, self.where, self.remedy = what, where, remedy
        parts = [f"{where}: {what}" if where else what, remedy]
        super().__init__(" ".join("; ".join(p for p in parts if p).split()))


class GgufError(OracleError):
    """The file is not a GGUF that can be read: missing, truncated, corrupt, big-endian."""


class TensorError(GgufError):
    """A tensor is missing, or has a shape, dtype or content that the model cannot have."""


class ConfigError(OracleError):
    """Metadata keys are missing, unknown or contradictory, or the architecture is not supported."""


class TokenizerError(OracleError):
    """The file's vocabulary cannot be turned into a tokenizer, or text and ids do not fit it."""


class ContextOverflow(OracleError):
    """More tokens than the model's context, or than the cache was asked to hold."""


class PrecisionError(OracleError):
    """A Policy that does not exist, or that this JAX configuration cannot honour."""


class SiteError(OracleError):
    """No such site, no such layer, or inputs that do not determine the site."""
