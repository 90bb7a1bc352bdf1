"""Faults as data: a change of one source, where it would really live, and where it must be found.

Adding one is five lines in a table here; the run that injects it must fail, place it, and name it
if it says so. A decoy is the same with nothing to find: the run must pass.
"""

import difflib
from collections.abc import Iterable

from experiments.align.errors import UnknownFault
from experiments.align.faults.attention import ATTENTION
from experiments.align.faults.decoys import DECOYS
from experiments.align.faults.fault import NOWHERE, Fault, Patch, patch
from experiments.align.faults.harness import HARNESS
from experiments.align.faults.host import HOST
from experiments.align.faults.layers import LAYERS
from experiments.align.faults.oracle import ORACLE
from experiments.align.faults.weights import WEIGHTS

__all__ = [
    "CORPUS",
    "DECOYS",
    "FAULTS",
    "NOWHERE",
    "QUICK",
    "Fault",
    "Patch",
    "chosen",
    "find",
    "patch",
]

CORPUS = (*ATTENTION, *LAYERS, *HOST, *WEIGHTS, *ORACLE, *HARNESS)
FAULTS = {fault.name: fault for fault in CORPUS}
DECOYS_BY_NAME = {decoy.name: decoy for decoy in DECOYS}
QUICK = (
    *("kv_base_of_layer_0", "kv_append_for_query_heads", "softmax_scale_missing"),
    *("k_cached_before_rope", "gate_and_up_swapped", "pages_from_the_other_end"),
)
"""Host code alone: nothing is compiled again."""


def find(name: str) -> Fault:
    """A fault or a decoy. Raises UnknownFault with the nearest name."""
    known = FAULTS | DECOYS_BY_NAME
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise UnknownFault(f"unknown fault {name!r}: {hint}")


def chosen(names: Iterable[str]) -> list[str]:
    """Names of faults and decoys for names, `quick` or `all`."""
    sets = {"all": (*FAULTS, *DECOYS_BY_NAME), "quick": QUICK}
    return list(dict.fromkeys(one for name in names for one in sets.get(name, (name,))))
