"""What an instruction reads and writes, recorded while it is translated, for the sanitizers.

The record is taken from the emitter's own register accesses, so it cannot disagree with them.
"""

import re
import struct
from dataclasses import dataclass, field

SCC_INDEX = 128
EXEC_INDEX = 126

# Order of the runtime's enum (sanitize.h).
ROLES = (
    "read",  # lanes of EXEC
    "write",
    "address",  # read, and the value must be defined
    "result",  # written by the runtime when the data arrive
    "first_lane",
    "some_lane",
    "lane_write",
    "whole",  # read in all lanes, EXEC or not
    "whole_write",
    "sread",
    "swrite",
    "saddress",
    "sresult",
    "condition",  # scalar read that decides a branch
)
MAX_USES = 24
RECORD = struct.Struct("<HbbHH" + "HBB" * MAX_USES)

VMEM, SMEM, LDS, FLAT, WAIT = 1, 2, 4, 8, 16
VECTOR_MEMORY = (
    *("global_", "scratch_", "buffer_load", "buffer_store", "buffer_atomic", "tbuffer_"),
)
SCALAR_MEMORY = ("s_load", "s_buffer", "s_store", "s_atomic")


@dataclass
class Effects:
    """Register uses of one instruction: (role, first register, count)."""

    uses: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, role: str, first: int, count: int) -> None:
        if role in ("sread", "saddress", "condition") and first >= EXEC_INDEX and first < SCC_INDEX:
            return
        if (role, first, count) not in self.uses:
            self.uses.append((role, first, count))

    def pack(self, mnemonic: str, text: str) -> bytes:
        """The runtime's record of an instruction site."""
        flags = kind_of(mnemonic)
        vmcnt = lgkmcnt = -1
        if mnemonic == "s_waitcnt":
            flags, vmcnt, lgkmcnt = WAIT, *wait_counts(text)
        uses = self.uses
        if len(uses) > MAX_USES:
            raise ValueError(f"{len(uses)} register uses in one instruction")
        flat = [x for role, first, count in uses for x in (first, count, ROLES.index(role))]
        flat += [0, 0, 0] * (MAX_USES - len(uses))
        return RECORD.pack(flags, vmcnt, lgkmcnt, len(uses), 0, *flat)


def kind_of(mnemonic: str) -> int:
    """Which counters an instruction raises."""
    if mnemonic.startswith("flat_"):
        return VMEM | LDS | FLAT
    if mnemonic.startswith(VECTOR_MEMORY):
        return VMEM
    if mnemonic.startswith(SCALAR_MEMORY):
        return SMEM
    return LDS if mnemonic.startswith("ds_") else 0


def wait_counts(text: str) -> tuple[int, int]:
    """(vmcnt, lgkmcnt) of an s_waitcnt, -1 where it does not wait."""
    if re.fullmatch(r"(0x)?[0-9a-f]+", text):
        bits = int(text, 0)
        vm = (bits & 15) | (bits >> 10 & 0x30)
        lgkm = bits >> 8 & 15
        return (vm if vm < 63 else -1), (lgkm if lgkm < 15 else -1)
    found = {name: int(n) for name, n in re.findall(r"(\w+)\((\d+)\)", text)}
    return found.get("vmcnt", -1), found.get("lgkmcnt", -1)
