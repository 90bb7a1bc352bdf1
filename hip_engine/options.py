"""What an engine may be opened with, beside model, device and route."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hip_engine.errors import EngineError, ScalesRefused
from hip_engine.kv_scales import KvScales
from hip_engine.kv_types import KV_TYPES, KvType
from hip_engine.weights import ModelFile

PAGE_SLOTS = (16, 64, 256)
MAX_SEQUENCES = 64


@dataclass(frozen=True)
class Options:
    """A frozen, checked configuration.

    Attributes:
      kv_dtype: a name of KV_TYPES. kv_scale: fp8 only: what stored numbers are multiplied by, one
        for all heads, an array [layer][k, v][kv head] or the path of a KvScales file.
      max_context: positions of a sequence. sequences: how many at a time.
      page_slots: None for a contiguous cache. pages: of the pool; None: enough for all sequences.
      max_rows: tokens of one pass.
      prefill_gemm: "valu", with the bits of decode, or "mfma": f16 operands on matrix cores.
      window: newest tokens that attention sees, 0 for all. softcap: of the scores, 0 for none.
    """

    kv_dtype: str = "float16"
    kv_scale: float | np.ndarray | str | Path = 1.0
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

    @property
    def scales_file(self) -> bool:
        return isinstance(self.kv_scale, str | Path)

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
            (self.scales_file or np.all(np.asarray(self.kv_scale) > 0), "kv_scale", "positive"),
        ):
            if not ok:
                raise EngineError(f"{field} is {getattr(self, field)!r}: use {allowed}")
        return self

    def kv_scales(self, model: ModelFile) -> np.ndarray:
        """[layer][k, v][kv head].

        Raises:
          ScalesRefused: another shape, or a file that is not of this model.
        """
        if self.scales_file:
            return KvScales.read(self.kv_scale, model).scales_L2K
        shape, given = (model.config.L, 2, model.config.K), np.asarray(self.kv_scale, np.float32)
        if given.shape not in ((), shape):
            raise ScalesRefused(f"kv_scale has the shape {given.shape}: use one number or {shape}")
        return np.broadcast_to(given, shape).copy()
