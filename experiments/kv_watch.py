"""What a decode step does to the KV cache: by address where the device can tell, else by bytes."""

from collections.abc import Callable

import numpy as np

from experiments.align.invariants import Access, Slots
from hip_engine.device import Buffer, Device
from hip_engine.engine import Engine
from hip_engine.kv_cache import KvGeometry
from hip_engine.kv_types import KV_TYPES, KvType
from hip_engine.taps import Step

ADDRESSES, BYTES = "addresses", "bytes"


def evidence(device: Device) -> str:
    """How `watch_step` knows: ADDRESSES that were touched, or BYTES that changed."""
    return ADDRESSES if device.reports_accesses else BYTES


def kv_slots(geometry: KvGeometry, length: int) -> list[Slots]:
    """The cache's layout as plain numbers: the slots of sequence 0, as far as `length` tokens need
    pages. (A table says nothing past them: what is not mapped reads as page 0.)
    """
    pages = -(-length // geometry.page_slots)
    positions = range(min(pages * geometry.page_slots, geometry.positions))
    offsets_S = np.array([geometry.offset_bytes(0, 0, position) for position in positions])
    starts_LK = geometry.layer_stride_bytes * np.arange(geometry.layers)[
        :, None
    ] + geometry.head_stride_bytes * np.arange(geometry.kv_heads)
    offsets_LKS = starts_LK[:, :, None] + offsets_S.astype(np.int64)
    return [
        Slots(kind, buffer.address, buffer.nbytes, geometry.slot_bytes, offsets_LKS)
        for kind, buffer in (("k", geometry.k), ("v", geometry.v))
    ]


def watch_step(
    engine: Engine, device: Device, step: Callable[[], Step]
) -> tuple[Step, list[Access]]:
    """The step, and what it did to the buffers of K and V.

    By bytes, every byte that holds no live slot is made NaN first, so that whatever a kernel stores
    there is a change; a live slot that is stored again as it was is not seen, nor is any read.
    """
    geometry = engine.kv_geometry()
    buffers = geometry.k, geometry.v
    if device.reports_accesses:
        with device.watch(buffers) as log:
            done = step()
        return done, [Access(log.written(buffer), log.read(buffer)) for buffer in buffers]
    kind = KV_TYPES[engine.precision["kv.k"]["store"]]
    slots = kv_slots(geometry, engine.position)
    before = [
        _poisoned(device, buffer, _live(layout, engine.position), kind)
        for buffer, layout in zip(buffers, slots, strict=True)
    ]
    done = step()
    changed = [
        _changed(held, device.read(buffer, np.dtype(np.uint8), buffer.nbytes), kind)
        for buffer, held in zip(buffers, before, strict=True)
    ]
    return done, [Access(written, None) for written in changed]


def _live(slots: Slots, length: int) -> np.ndarray:
    """One bool for each byte: it belongs to one of the first `length` slots."""
    live = np.zeros(slots.nbytes, bool)
    for begin in slots.offsets_LKS[:, :, :length].flat:
        live[begin : begin + slots.slot_bytes] = True
    return live


def _poisoned(device: Device, buffer: Buffer, live: np.ndarray, kind: KvType) -> np.ndarray:
    """The bytes of the buffer after NaN has been written to those that are not live."""
    held = device.read(buffer, np.dtype(np.uint8), buffer.nbytes)
    words = np.full(-(-buffer.nbytes // 4), kind.poison, np.uint32)
    held = np.where(live, held, words.view(np.uint8)[: buffer.nbytes])
    device.write(buffer, held)
    return held


def _changed(before: np.ndarray, after: np.ndarray, kind: KvType) -> np.ndarray:
    """One bool for each byte: its element is another than before."""
    size = kind.raw.itemsize
    element = (before != after).reshape(-1, size).any(axis=1)
    return np.repeat(element, size)
