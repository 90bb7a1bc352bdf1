"""The launches of one op, with the memory they read, so that they can be made again alone."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.align.errors import TraceError
from experiments.observed_device import ObservedDevice
from hip_engine.device import Device, LaunchRecord
from hip_engine.engine import Engine
from hip_engine.taps import Taps

BYTE = np.dtype(np.uint8)
SEEN = Taps.of(("embed",))
"""A tapped step passes by the device launch by launch; an untapped one is a graph."""


@dataclass(frozen=True)
class Launch:
    """One launch. `pointers`: (offset in the arguments, label of a buffer, offset in it)."""

    symbol: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    kernarg: str
    pointers: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True)
class Captured:
    """The launches of an op, every buffer they point into as it was before, and its hash after."""

    launches: tuple[Launch, ...]
    before: dict[str, np.ndarray]
    after: dict[str, str]

    def save(self, folder: Path) -> None:
        np.savez_compressed(folder / "memory.npz", **self.before)
        record = {"launches": [asdict(launch) for launch in self.launches], "after": self.after}
        (folder / "launches.json").write_text(json.dumps(record, indent=1) + "\n")


class CapturingDevice(ObservedDevice):
    """Notes what each launch writes, or keeps some launches and the memory around them."""

    def __init__(self, device: Device):
        super().__init__(device)
        self.written: list[tuple[str, frozenset[str]]] | None = None
        self.keep: range = range(0)
        self._count, self._kept = 0, []
        self.before: dict[str, np.ndarray] = {}
        self.after: dict[str, str] = {}

    def begin(self, keep: range = range(0)) -> None:
        self.written, self.keep, self._count = None if keep else [], keep, 0

    def observe(self, kernel, grid, block, args, dynamic_lds_bytes, stream) -> LaunchRecord:
        asked = kernel, grid, block, args, dynamic_lds_bytes
        if self._count in self.keep:
            for label in self._pointed_at(args):
                self.before.setdefault(label, self._bytes(label))
        if self.written is None:
            record = self.device.launch(*asked, stream=stream)
        else:
            with self.device.watch() as log:
                record = self.device.launch(*asked, stream=stream)
            touched = [n for n in self._pointed_at(args) if log.written(self.buffers[n]).any()]
            self.written.append((kernel.symbol, frozenset(touched)))
        if self._count in self.keep:
            self._kept.append(record)
            self.after = {label: _digest(self._bytes(label)) for label in self.before}
        self._count += 1
        return record

    def captured(self) -> Captured:
        launches = tuple(
            Launch(r.symbol, r.grid, r.block, r.kernarg.hex(), tuple(self._pointers(r.kernarg)))
            for r in self._kept
        )
        return Captured(launches, self.before, self.after)

    def _bytes(self, label: str) -> np.ndarray:
        return self.device.read(self.buffers[label], BYTE, self.buffers[label].nbytes)

    def _pointed_at(self, args) -> list[str]:
        raw = b"".join(np.asarray(a).tobytes() for a in args if np.asarray(a).itemsize >= 8)
        return list(dict.fromkeys(label for _, label, _ in self._pointers(raw)))

    def _pointers(self, raw: bytes):
        """Words that are addresses of a buffer: eight bytes, at multiples of eight."""
        for index, word in enumerate(np.frombuffer(raw[: len(raw) // 8 * 8], np.uint64)):
            for label, buffer in self.buffers.items():
                if buffer.address <= int(word) < buffer.address + buffer.nbytes:
                    yield 8 * index, label, int(word) - buffer.address


def _digest(raw: np.ndarray) -> str:
    return hashlib.sha256(raw.tobytes()).hexdigest()


def capture(
    engine: Engine, device: CapturingDevice, token_ids, position: int, layer: int, site: str
) -> Captured:
    """Runs the tokens up to `position` again and keeps the launches that make one site's tensor.

    Raises TraceError if no launch, or not one a layer, writes the site's buffer.
    """
    engine.reset()
    device.begin()
    engine.step(token_ids[0], SEEN)
    of_site = [i for i, (_, labels) in enumerate(device.written) if site in labels]
    if len(of_site) not in (1, engine.config.L):
        raise TraceError(f"{len(of_site)} launches of a step write {site}")
    last = of_site[layer if len(of_site) > 1 else 0]
    merges = last and any(name.startswith("attn.partial") for name in device.written[last - 1][1])
    device.begin(range(0, 0))
    device.written = None
    engine.reset()
    for token in token_ids[:position]:
        engine.step(token)
    device.begin(range(last - 1 if merges else last, last + 1))
    engine.step(token_ids[position], SEEN)
    return device.captured()


def replay(device: Device, code_object: bytes, folder: Path) -> tuple[list[str], dict[str, bytes]]:
    """Makes the launches of a folder again: the buffers whose bytes are not those of the run, and
    every buffer's bytes. Raises TraceError for a folder that holds no captured launches."""
    try:
        record = json.loads((folder / "launches.json").read_text(encoding="utf-8"))
        launches = [Launch(**launch) for launch in record["launches"]]
        with np.load(folder / "memory.npz", allow_pickle=False) as stored:
            memory = {label: stored[label] for label in stored.files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise TraceError(f"{folder} holds no captured launches: {reason}") from error
    buffers = {}
    for label, raw in memory.items():
        buffers[label] = device.allocate(raw.size, label)
        device.write(buffers[label], raw)
    kernels = device.open(code_object)
    for launch in launches:
        kernarg = bytearray.fromhex(launch.kernarg)
        for offset, label, inside in launch.pointers:
            address = buffers[label].address + inside
            kernarg[offset : offset + 8] = address.to_bytes(8, "little")
        grid, block = tuple(launch.grid), tuple(launch.block)
        device.launch(kernels[launch.symbol], grid, block, bytes(kernarg))
    found = {label: device.read(buffer, BYTE, buffer.nbytes) for label, buffer in buffers.items()}
    differ = [label for label, raw in found.items() if _digest(raw) != record["after"].get(label)]
    return differ, {label: raw.tobytes() for label, raw in found.items()}
