"""What a fault is: a change of the sources, where it must be found, and what it must be called."""

from collections.abc import Mapping
from dataclasses import dataclass, field

NOWHERE = (-1, "")
FAIL, REFUSED, INCONCLUSIVE, ORACLE = 1, 2, 3, 4
"""Exit codes of the run that must find it."""


@dataclass(frozen=True)
class Patch:
    """`old`, which occurs exactly once in `file`, becomes `new`.

    `file` is a source of kernels/ ("rope.hip"), or a module ("hip_engine.forward").
    """

    file: str
    old: str
    new: str

    @property
    def is_kernel(self) -> bool:
        return self.file.endswith((".h", ".hip"))

    @property
    def lives_in(self) -> str:
        """kernels, engine, oracle or harness."""
        packages = {"hip_engine": "engine", "greta_jax": "oracle", "experiments": "harness"}
        return "kernels" if self.is_kernel else packages[self.file.partition(".")[0]]


@dataclass(frozen=True)
class Fault:
    """Patches, of which there may be none, and `options` of Engine.open and `run` of the flags.

    reference: its id in GRETA's record, if it happened there. found_at: (layer, site) of the first
    divergence; NOWHERE for a decoy, or if the run says in words what is wrong: those that it must
    `say`, with exit code `code`. named: the hypothesis that says what it is; `unnamed` says why
    none can. status: the rung on which the first divergence must be, where that is asked for.
    queries: a power of two by which the queries of layer 0 are larger in the model that is run, for
    what only large scores show.
    """

    name: str
    reference: str = ""
    patches: tuple[Patch, ...] = ()
    found_at: tuple[int, str] = NOWHERE
    says: str = ""
    code: int = FAIL
    named: str = ""
    unnamed: str = ""
    status: str = ""
    queries: float = 1.0
    options: Mapping[str, object] = field(default_factory=dict)
    run: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_decoy(self) -> bool:
        return self.found_at == NOWHERE and not self.says

    @property
    def lives_in(self) -> str:
        return " and ".join(dict.fromkeys(p.lives_in for p in self.patches)) or "options"

    @property
    def of_another_reference(self) -> bool:
        """Whether the oracle's side is another than that of a run without the fault."""
        changed = any(patch.lives_in in ("oracle", "harness") for patch in self.patches)
        return changed or self.queries != 1.0


def patch(file: str, old: str, new: str) -> tuple[Patch, ...]:
    """One patch; add them up where it takes several."""
    return (Patch(file, old, new),)
