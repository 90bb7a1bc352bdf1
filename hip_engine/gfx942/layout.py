"""Byte layout of a wave's state, shared by translated code (IR) and the C runtime.

The runtime is compiled with one -D per entry and asserts each against offsetof, so that the two
cannot drift apart.
"""

LANES = 64
ROW_BYTES = 4 * LANES  # one VGPR of one wave

SGPR = 0  # uint32[128], indexed by the hardware's scalar operand encoding
SCC = 512
MODE = 516
PC = 520  # block at which the wave resumes
SITE = 524  # instruction index of the last fault
BUDGET = 528
LDS = 536
LDS_BYTES = 544
SCRATCH = 552
SCRATCH_STRIDE = 560
COUNTS = 568  # uint64 per block: how often it was entered
CODE_BASE = 576
FAULT_ADDRESS = 584
FAULT_LANE = 592
FAULT_KIND = 596
WORKGROUP = 600  # uint32[3]
WAVE_INDEX = 612
MEMORY = 616  # the arena: allocation table and access log
JUMPS = 624  # int32 per instruction word of .text: its block, or -1
TEXT = 632  # device address of .text
TEXT_WORDS = 640
OBSERVER = 648  # state of the sanitizers, or null
COUNTERS = 656  # memory counters, or null
VM_ISSUED = 664  # vector memory instructions issued and known complete, and the most in flight
VM_DONE = 668
VM_PEAK = 672
RECENT = 704  # 16 recently used allocations (begin, end, index), by site
TEMP = 1152  # double[64], arguments of the runtime's functions of a lane
VGPR = 2048  # uint32[512][64]: v0..v255, then a0..a255
WAVE_BYTES = VGPR + 512 * ROW_BYTES
EFFECT_BYTES = 104  # effects.RECORD.size
ARENA_BYTES = 192 << 30  # HBM of one MI300X

OFFSETS = {
    name: value
    for name, value in globals().items()
    if name.isupper() and name not in ("LANES", "ROW_BYTES", "OFFSETS")
}

# What a piece of translated code returns: the next block (>= 0), or one of these.
ENDED, BARRIER, FAULTED, RUNAWAY = -1, -2, -3, -4

# FAULT_KIND values, in the order of the runtime's enum.
(
    FAULT_GLOBAL_LOAD,
    FAULT_GLOBAL_STORE,
    FAULT_LDS,
    FAULT_SCRATCH,
    FAULT_JUMP,
    FAULT_TRAP,
    FAULT_MISALIGNED,
    FAULT_UNDEFINED,
    FAULT_RACE,
    FAULT_BARRIER,
    FAULT_WAITCNT,
    FAULT_DESCRIPTOR,
    FAULT_ROUNDING,
    FAULT_INDEX,
    FAULT_FORMAT,
    FAULT_GLOBAL_ATOMIC,
    FAULT_UNALIGNED,
) = range(17)
