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

    reference: its row in the record of faults it was taken from. where: KERNEL for a file of
    kernels/, HOST for a module of the engine. found_at: (layer, site) of the first divergence.
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
)
FAULTS = {fault.name: fault for fault in CORPUS}


def find(name: str) -> Fault:
    """Raises UnknownFault with the nearest name."""
    if name in FAULTS:
        return FAULTS[name]
    near = difflib.get_close_matches(name, FAULTS, 1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(FAULTS)}"
    raise UnknownFault(f"unknown fault {name!r}: {hint}")
