"""The KV cache on the device: two buffers, each [layer][page][kv head][slot][H].

Contiguous is the case of one page a sequence: [layer][sequence][kv head][position][H]. A paged
cache has one page more in every layer, the last: a guard, NaN from the start, that nobody owns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hip_engine.arguments import KV_VIEW, record
from hip_engine.config import ModelConfig
from hip_engine.device import Buffer, Device
from hip_engine.kv_types import KvType
from hip_engine.launcher import Launcher
from hip_engine.page_pool import PagePool

WHOLE_SEQUENCE = 31  # log2 of a page that no sequence outgrows


@dataclass(frozen=True)
class KvLayout:
    """`page_slots` None: contiguous, one page of `positions` slots for each sequence."""

    kind: KvType
    positions: int
    sequences: int = 1
    page_slots: int | None = None
    pages: int | None = None

    @property
    def slots_of_a_page(self) -> int:
        return self.page_slots or self.positions

    @property
    def page_count(self) -> int:
        each = -(-self.positions // self.slots_of_a_page)
        return self.sequences * each if self.pages is None else self.pages

    @property
    def pages_of_a_sequence(self) -> int:
        return -(-self.positions // self.slots_of_a_page)

    @property
    def pages_with_guard(self) -> int:
        return self.page_count + (self.page_slots is not None)

    def sizes(self, config: ModelConfig) -> dict[str, int]:
        """Bytes of the cache's buffers, for the allocation plan."""
        slots = config.L * self.pages_with_guard * config.K * self.slots_of_a_page
        each = slots * config.H * self.kind.raw.itemsize
        sizes = {"kv.k": each, "kv.v": each}
        sizes["kv.tables"] = self.sequences * self.pages_of_a_sequence * 4
        if self.kind.scaled:
            sizes["kv.scales"] = config.L * 2 * config.K * 4
        return sizes


@dataclass(frozen=True)
class KvGeometry:
    """Where the slot of (layer, kv head, position) lies: offsets are bytes from a buffer's start.

    The same strides hold for both buffers; a slot is `slot_bytes` long. `tables_BP` is a snapshot.
    """

    k: Buffer
    v: Buffer
    layers: int
    kv_heads: int
    positions: int
    layer_stride_bytes: int
    page_stride_bytes: int
    head_stride_bytes: int
    position_stride_bytes: int
    slot_bytes: int
    page_slots: int
    tables_BP: np.ndarray

    def offset_bytes(self, layer: int, kv_head: int, position: int, sequence: int = 0) -> int:
        page = int(self.tables_BP[sequence, position // self.page_slots])
        return (
            layer * self.layer_stride_bytes
            + page * self.page_stride_bytes
            + kv_head * self.head_stride_bytes
            + position % self.page_slots * self.position_stride_bytes
        )


class KvCache:
    """The buffers, the pool that says who owns them, and the view that kernels get."""

    def __init__(
        self,
        config: ModelConfig,
        layout: KvLayout,
        device: Device,
        buffers: Mapping[str, Buffer],
        scales_L2K: np.ndarray | None,
        owner: str,
    ):
        self.layout, self._config, self._device = layout, config, device
        self._owner = owner
        self._buffers = buffers
        self.head_stride = layout.slots_of_a_page * config.H
        self.page_stride = config.K * self.head_stride
        self.layer_stride = layout.pages_with_guard * self.page_stride
        self.scales_L2K = scales_L2K
        if scales_L2K is not None:
            device.write(buffers["kv.scales"], scales_L2K.astype(np.float32))
        self._written_BP: np.ndarray | None = None
        self.clear()

    def clear(self):
        layout = self.layout
        self.pool = PagePool(
            *(layout.page_count, layout.slots_of_a_page, layout.sequences, layout.positions),
            owner=self._owner,
        )
        self.write_tables()

    def write_tables(self):
        """Brings the device's tables up to date, if a page was mapped or freed."""
        if self._written_BP is None or not np.array_equal(self._written_BP, self.pool.tables_BP):
            self._device.write(self._buffers["kv.tables"], self.pool.tables_BP)
            self._written_BP = self.pool.tables_BP.copy()

    def geometry(self) -> KvGeometry:
        size = self.layout.kind.raw.itemsize
        return KvGeometry(
            k=self._buffers["kv.k"],
            v=self._buffers["kv.v"],
            layers=self._config.L,
            kv_heads=self._config.K,
            positions=self.layout.positions,
            layer_stride_bytes=self.layer_stride * size,
            page_stride_bytes=self.page_stride * size,
            head_stride_bytes=self.head_stride * size,
            position_stride_bytes=self._config.H * size,
            slot_bytes=self._config.H * size,
            page_slots=self.layout.slots_of_a_page,
            tables_BP=self.pool.tables_BP.copy(),
        )

    def layer_offset_bytes(self, layer: int) -> int:
        return layer * self.layer_stride * self.layout.kind.raw.itemsize

    def view(self, layer: int, offset_bytes: int) -> np.void:
        """The KvView of a layer whose slabs are taken to start at `offset_bytes`."""
        scaled = self.layout.kind.scaled
        scales = self._buffers["kv.scales"].address + layer * 8 * self._config.K if scaled else 0
        paged = self.layout.page_slots is not None
        return record(
            KV_VIEW,
            k_PKJH=self._buffers["kv.k"].address + offset_bytes,
            v_PKJH=self._buffers["kv.v"].address + offset_bytes,
            table_BP=self._buffers["kv.tables"].address,
            scales_2K=scales,
            page_stride=self.page_stride,
            head_stride=self.head_stride,
            log2_page=self.layout.page_slots.bit_length() - 1 if paged else WHOLE_SEQUENCE,
            table_stride=self.layout.pages_of_a_sequence,
        )

    def copy_page(self, launcher: Launcher, pages: tuple[int, int]):
        """Copies page `pages[0]` to `pages[1]` in every layer."""
        launcher.copy_page(*self._page_words(), pages, self._config.L)

    def poison_page(self, launcher: Launcher, page: int):
        """Fills a page with NaN in every layer."""
        pattern = self.layout.kind.poison
        launcher.fill_page(*self._page_words(), page, self._config.L, pattern)

    def poison_guard(self, launcher: Launcher):
        """Fills the guard page, if there is one, with NaN."""
        if self.layout.page_slots is not None:
            self.poison_page(launcher, self.layout.page_count)

    def _page_words(self) -> tuple[int, int, int, int]:
        """Addresses of both buffers; words between layers and in a page."""
        size = self.layout.kind.raw.itemsize
        words = (self.layer_stride * size // 4, self.page_stride * size // 4)
        return self._buffers["kv.k"].address, self._buffers["kv.v"].address, *words

    def live_slab(self, which: str, layer: int, sequence: int, S: int) -> np.ndarray:
        """The first S slots of "k" or "v" of a sequence as stored, SKH, widened to fp32."""
        kind, H, J = self.layout.kind, self._config.H, self.layout.slots_of_a_page
        geometry = self.geometry()
        buffer = getattr(geometry, which)
        slab = np.empty((S, self._config.K, H), np.float32)
        for head in range(self._config.K):
            for first in range(0, S, J):
                end = min(first + J, S)
                at = geometry.offset_bytes(layer, head, first, sequence)
                raw = self._device.read(buffer, kind.raw, (end - first) * H, at)
                slab[first:end, head] = kind.widen(raw).reshape(-1, H)
        if self.scales_L2K is not None:
            slab *= self.scales_L2K[layer, "kv".index(which)][:, None].astype(np.float32)
        return slab
