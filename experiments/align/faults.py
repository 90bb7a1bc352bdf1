"""Faults as data: a change of one source, where it would really live, and where it must be found.

Adding one is five lines here; the run that injects it must fail and place it.
"""

import difflib
from dataclasses import dataclass

from experiments.align.errors import UnknownFault

KERNEL, HOST = "kernel", "host"


@dataclass(frozen=True)
class Fault:
    """A source patch: `old`, which occurs exactly once in `file`, becomes `new`.

    reference: its id in GRETA's record, if it happened there. where: KERNEL for a file of kernels/,
    HOST for a module of the engine. found_at: (layer, site) of the first divergence.
    """

    name: str
    reference: str
    where: str
    file: str
    old: str
    new: str
    found_at: tuple[int, str]


CORPUS = (
    Fault(
        *("kv_base_of_layer_0", "R7", HOST, "hip_engine.engine"),
        old="return self._cache.layer_offset_bytes(layer)",
        new="return self._cache.layer_offset_bytes(0)",
        found_at=(1, "attn.out"),
    ),
    Fault(
        *("newest_key_dropped", "R5", KERNEL, "attention.h"),
        old="const int end = position + 1;",
        new="const int end = position;",
        found_at=(0, "attn.out"),
    ),
    Fault(
        *("kv_writer_of_another_stride", "R16", KERNEL, "kv_append.hip"),
        old="position_T[row], H) + h;",
        new="position_T[row], H) + h - head * H;",
        found_at=(0, "kv.k"),
    ),
    Fault(
        *("rope_position_off_by_one", "G2", KERNEL, "rope.hip"),
        old="static_cast<int64_t>(position_T[token]) * H",
        new="static_cast<int64_t>(position_T[token] + 1) * H",
        found_at=(0, "attn.q_rope"),
    ),
    Fault(
        *("gate_and_up_swapped", "", HOST, "hip_engine.forward"),
        old='_launch.swiglu(at["ffn.gate"], at["ffn.up"],',
        new='_launch.swiglu(at["ffn.up"], at["ffn.gate"],',
        found_at=(0, "ffn.act"),
    ),
)
FAULTS = {fault.name: fault for fault in CORPUS}


def find(name: str) -> Fault:
    """Raises UnknownFault with the nearest name."""
    if name in FAULTS:
        return FAULTS[name]
    near = difflib.get_close_matches(name, FAULTS, 1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(FAULTS)}"
    raise UnknownFault(f"unknown fault {name!r}: {hint}")
