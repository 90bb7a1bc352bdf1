"""What an engine may be opened with, beside model, device and route."""

from dataclasses import dataclass

import numpy as np

from hip_engine.config import ModelConfig
from hip_engine.errors import EngineError
from hip_engine.kv_types import KV_TYPES, KvType

PAGE_SLOTS = (16, 64, 256)
MAX_SEQUENCES = 64


@dataclass(frozen=True)
class Options:
    """A frozen, checked configuration.

    Attributes:
      kv_dtype: a name of KV_TYPES. kv_scale: fp8 only: what stored numbers are multiplied by, one
        for all heads or an array [layer][k, v][kv head].
      max_context: positions of a sequence. sequences: how many at a time.
      page_slots: None for a contiguous cache. pages: of the pool; None: enough for all sequences.
      max_rows: tokens of one pass.
      prefill_gemm: "valu", with the bits of decode, or "mfma": f16 operands on matrix cores.
      window: newest tokens that attention sees, 0 for all. softcap: of the scores, 0 for none.
    """

    kv_dtype: str = "float16"
    kv_scale: float | np.ndarray = 1.0
    max_context: int | None = None
    sequences: int = 1
    page_slots: int | None = None
    pages: int | None = None
    max_rows: int = 32
    prefill_gemm: str = "valu"
    window: int = 0
    softcap: float = 0.0

    @property
    def kv_type(self) -> KvType:
        return KV_TYPES[self.kv_dtype]

    def checked(self) -> "Options":
        """Itself, or an EngineError that names the field and what it may be."""
        for ok, field, allowed in (
            (self.kv_dtype in KV_TYPES, "kv_dtype", " or ".join(KV_TYPES)),
            (self.page_slots in (None, *PAGE_SLOTS), "page_slots", f"None or {PAGE_SLOTS}"),
            (1 <= self.sequences <= MAX_SEQUENCES, "sequences", f"1 to {MAX_SEQUENCES}"),
            (self.sequences <= self.max_rows, "max_rows", "at least the sequences"),
            (self.pages is None or self.page_slots is not None, "pages", "None without page_slots"),
            (self.pages is None or self.pages > 0, "pages", "positive"),
            (self.prefill_gemm in ("valu", "mfma"), "prefill_gemm", "valu or mfma"),
            (self.window >= 0, "window", "0 or positive"),
            (self.softcap >= 0, "softcap", "0 or positive"),
            (np.all(np.asarray(self.kv_scale) > 0), "kv_scale", "positive"),
        ):
            if not ok:
                raise EngineError(f"{field} is {getattr(self, field)!r}: use {allowed}")
        return self

    def kv_scales(self, config: ModelConfig) -> np.ndarray:
        """[layer][k, v][kv head]."""
        shape = (config.L, 2, config.K)
        return np.broadcast_to(np.asarray(self.kv_scale, np.float32), shape).copy()
