"""What a run did, as hashes: every host write, every byte that each launch wrote, every tensor."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from experiments.align import sites
from experiments.align.trace import tensor_sha256
from experiments.observed_device import ObservedDevice
from hip_engine.device import LaunchRecord
from hip_engine.engine import Engine
from hip_engine.taps import Taps


class Event(NamedTuple):
    """A host write or a launch: what it is called, and the hash of all that it wrote."""

    kind: str
    name: str
    digest: str
    workgroups: int = 0


class HashingDevice(ObservedDevice):
    """Hashes what the host and each kernel write. A device that does not report accesses shows
    host writes only."""

    def __init__(self, device):
        super().__init__(device)
        self.events: list[Event] = []

    def write(self, buffer, array, offset_bytes: int = 0) -> None:
        raw = np.ascontiguousarray(array)
        digest = hashlib.sha256(str(offset_bytes).encode() + raw.tobytes()).hexdigest()
        self.events.append(Event("host write", buffer.label, digest))
        self.device.write(buffer, array, offset_bytes)

    def observe(self, kernel, grid, block, args, dynamic_lds_bytes, stream) -> LaunchRecord:
        asked = kernel, grid, block, args, dynamic_lds_bytes
        if not self.device.reports_accesses:
            return self.device.launch(*asked, stream=stream)
        with self.device.watch() as log:
            record = self.device.launch(*asked, stream=stream)
        hashed = hashlib.sha256()
        for buffer in self._pointed_at(record.kernarg):
            if (touched := np.flatnonzero(log.written(buffer))).size:
                first, count = int(touched[0]), int(touched[-1] - touched[0]) + 1
                bytes_now = self.device.read(buffer, np.dtype(np.uint8), count, first)
                hashed.update(f"{buffer.label} {first} {touched.size}".encode())
                hashed.update(bytes_now[touched - first].tobytes())
        workgroups = int(np.prod(grid))
        self.events.append(Event("launch", kernel.symbol, hashed.hexdigest(), workgroups))
        return record

    def _pointed_at(self, kernarg: bytes):
        """Buffers that an argument points into: pointers are eight bytes at multiples of eight."""
        words = np.frombuffer(kernarg[: len(kernarg) // 8 * 8], np.uint64)
        for buffer in self.buffers.values():
            if np.any((words >= buffer.address) & (words < buffer.address + buffer.nbytes)):
                yield buffer


@dataclass
class Fingerprint:
    """One run. tensors: (position, layer, site) -> hash of the whole tensor."""

    name: str
    events: list[Event]
    tensors: dict[tuple[int, int, str], str]
    tokens: tuple[int, ...]
    symbols: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.symbols = Counter(event.name for event in self.events if event.kind == "launch")


def of(name: str, engine: Engine, device: ObservedDevice, ids: Sequence[int], steps: int):
    """Feeds the prompt, then `steps` times the token just chosen; every site of every step."""
    tensors, tokens = {}, list(ids)
    taps = Taps.of(engine.sites)
    engine.reset()
    for position in range(len(ids) + steps):
        step = engine.step(tokens[position], taps)
        for (layer, site), value in step.taps.items():
            tensors[position, layer, site] = tensor_sha256(value)
        if position + 1 >= len(ids):
            tokens.append(step.top1)
    events = device.events if isinstance(device, HashingDevice) else []
    return Fingerprint(name, events, tensors, tuple(tokens))


def first_difference(ref: Fingerprint, got: Fingerprint) -> str:
    """Where `got` is not `ref`: the first event, since all before it wrote the same; else the first
    tensor; empty if all is equal."""
    launches = 0
    for left, right in zip(ref.events, got.events, strict=False):
        launches += left.kind == "launch"
        if left[:2] != right[:2]:
            return f"{got.name} does {right.kind} {right.name} where {ref.name} does {left.name}"
        if left.digest != right.digest:
            which = f"kernel {left.name}, launch {launches},"
            if left.kind == "host write":
                which = f"the host's write of {left.name}"
            return f"{which} is other bytes in {got.name} than in {ref.name}, all before it equal"
    if len(ref.events) != len(got.events) and ref.events and got.events:
        return f"{got.name} has {len(got.events)} launches and writes, {ref.name} {len(ref.events)}"
    if ref.tensors.keys() != got.tensors.keys():
        return f"{got.name} and {ref.name} do not hold the same tensors"
    ordered = sorted(ref.tensors, key=lambda key: (key[0], *sites.order(*key[1:])))
    for key in ordered:
        if ref.tensors[key] != got.tensors[key]:
            return f"{sites.name(*key[1:])}, position {key[0]}, of {got.name} is not {ref.name}'s"
    return ""
