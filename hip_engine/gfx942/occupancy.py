"""How many waves of a kernel fit on a compute unit at a time: CDNA3's registers, LDS and slots.

Static figures, not a measured MI300X time: 4 SIMDs a CU, 512 unified VGPRs a lane, at most 8 waves
a SIMD, 64 KiB of LDS a CU.
"""

from dataclasses import dataclass

from hip_engine.gfx942.code_object import KernelDescriptor

COMPUTE_UNITS = 304
SIMDS = 4
MAX_WAVES_PER_SIMD = 8
VGPRS_PER_LANE = 512
LDS_PER_CU = 1 << 16
LANES = 64
# SGPRs a wave -> waves a SIMD (LLVM, GCNSubtarget::getOccupancyWithNumSGPRs).
SGPR_STEPS = ((80, 10), (88, 9), (100, 8))


@dataclass(frozen=True)
class Occupancy:
    """Waves a SIMD can hold of a kernel, and what bounds it: registers, LDS, block or slots."""

    waves_per_simd: int
    bound: str


def waves_by_registers(descriptor: KernelDescriptor) -> int:
    """Waves a SIMD holds as far as vector registers go."""
    return min(MAX_WAVES_PER_SIMD, VGPRS_PER_LANE // descriptor.vgpr_count)


def workgroups_per_cu(descriptor: KernelDescriptor, block_items: int, dynamic_lds: int = 0) -> int:
    """Workgroups of this size that a compute unit holds at a time; 0 if not even one fits."""
    waves = -(-block_items // LANES)
    by_waves = SIMDS * waves_by_registers(descriptor) // waves
    lds = descriptor.lds_bytes + dynamic_lds
    return min(by_waves, LDS_PER_CU // lds) if lds else by_waves


def occupancy(descriptor: KernelDescriptor, block_items: int, dynamic_lds: int = 0) -> Occupancy:
    """Waves a SIMD, averaged over the four and rounded down, and the first bound that holds."""
    by_registers = waves_by_registers(descriptor)
    waves = -(-block_items // LANES)
    groups = workgroups_per_cu(descriptor, block_items, dynamic_lds)
    resident = groups * waves // SIMDS if groups * waves >= SIMDS else min(groups, 1)
    lds = descriptor.lds_bytes + dynamic_lds
    if lds and groups == LDS_PER_CU // lds and resident < by_registers:
        return Occupancy(resident, "LDS")
    if resident < by_registers:
        return Occupancy(resident, "block size")
    return Occupancy(resident, "registers" if by_registers < MAX_WAVES_PER_SIMD else "wave slots")
