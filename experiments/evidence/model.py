"""How long an MI300X would take, modelled: nothing here is a measured time.

A launch takes its first memory round trips, one after the other, that of its first data included,
and then the longest of three: its bytes at the ceiling of the memory, the further round trips that
its loads in flight leave a compute unit waiting for, and the clocks that the fullest compute unit
issues for.
"""

import math
from dataclasses import dataclass

from hip_engine.device import MemoryCounts
from hip_engine.gfx942.occupancy import COMPUTE_UNITS, SIMDS

CLOCK_HZ = 2.1e9
PEAK_BPS = 5.3e12
MEASURED_BPS = 4.2e12
"""The highest read rate that has been published for the chip; see numerics.md."""
LITTLE_BYTES = 13.6e3
"""Bytes that a compute unit must have in flight for its share of PEAK_BPS (Little's law)."""
LATENCY_S = LITTLE_BYTES * COMPUTE_UNITS / PEAK_BPS
L1_BYTES_PER_CLOCK = 64
CLOCKS_PER_SLOT = 4


@dataclass(frozen=True)
class Work:
    """What one workgroup does, and what a compute unit can hold of them.

    Attributes:
      bytes: what it must fetch from memory. clocks: that a compute unit issues for it.
      flight_bytes: the most it has in flight. resident: workgroups that fit on a compute unit.
      round_trips: memory latencies from its start until it asks for its data.
    """

    bytes: float
    clocks: float
    flight_bytes: float
    resident: int
    round_trips: int

    @property
    def start_s(self) -> float:
        """Until its first data are there."""
        return (self.round_trips + 1) * LATENCY_S


@dataclass(frozen=True)
class Modelled:
    """Seconds, and what they are bound by: memory, loads in flight, issue or round trips."""

    seconds: float
    bound: str


def workgroup_clocks(slots: dict[str, int], memory: MemoryCounts, workgroups: int) -> float:
    """Clocks of a compute unit for one workgroup of `workgroups` that were counted together.

    Its four SIMDs issue side by side, and each unit of a SIMD beside the others. LDS and the
    first-level cache are shared by all four; the cache looks up a line a clock.
    """
    simd = max(slots.values()) * CLOCKS_PER_SLOT / SIMDS
    cache = max(memory.load_lines, memory.load_bytes / L1_BYTES_PER_CLOCK)
    return max(simd, cache, memory.lds_passes) / workgroups


def model(work: Work, workgroups: int, ceiling_bps: float) -> Modelled:
    """One launch of `workgroups` that are alike."""
    fullest = math.ceil(workgroups / COMPUTE_UNITS)  # workgroups of the busiest compute unit
    together = min(fullest, work.resident)
    waits = work.bytes * fullest / (work.flight_bytes * together)
    parts = {
        "memory": workgroups * work.bytes / ceiling_bps,
        "loads in flight": max(waits - 1, 0) * LATENCY_S,
        "issue": fullest * work.clocks / CLOCK_HZ,
    }
    longest = max(parts, key=parts.__getitem__)
    bound = longest if parts[longest] >= work.start_s else "round trips"
    return Modelled(work.start_s + parts[longest], bound)


def limit_s(launches: list[tuple[Work, int]], ceiling_bps: float) -> float:
    """Launches that wait for nothing but their first round trips and the ceiling of the memory."""
    return sum(work.start_s + count * work.bytes / ceiling_bps for work, count in launches)
