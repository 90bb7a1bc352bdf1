"""Routes of decode attention: what they are called, which are built, and what each must execute."""

from collections.abc import Iterable
from dataclasses import dataclass

from hip_engine.device import LaunchRecord
from hip_engine.errors import RouteNotBuilt, UnknownRoute

KERNEL_WORDS = ("manual", "fused", "auto")
MATMUL_WORDS = ("valu", "mfma", "auto")


@dataclass(frozen=True)
class Route:
    """`kernel`/`matmul`. In auto, the words are chosen from what is built (`resolve`)."""

    kernel: str
    matmul: str

    @classmethod
    def parse(cls, text: str) -> "Route":
        """Reads "manual/valu" and the like.

        Raises:
          UnknownRoute: not two words of the lists, with the lists.
        """
        kernel, _, matmul = text.partition("/")
        if kernel not in KERNEL_WORDS or matmul not in MATMUL_WORDS:
            raise UnknownRoute(
                f"unknown route {text!r}: write KERNEL/MATMUL with KERNEL one of "
                f"{', '.join(KERNEL_WORDS)} and MATMUL one of {', '.join(MATMUL_WORDS)}"
            )
        return cls(kernel, matmul)

    def __str__(self) -> str:
        return f"{self.kernel}/{self.matmul}"


BUILT = (Route("manual", "valu"),)


def resolve(route: Route) -> tuple[Route, str]:
    """The concrete route that `route` stands for, and why.

    Raises:
      RouteNotBuilt: no built route matches, with those that are built.
    """
    for built in BUILT:
        if route.kernel in (built.kernel, "auto") and route.matmul in (built.matmul, "auto"):
            reason = "asked for" if route == built else f"first built route that matches {route}"
            return built, reason
    raise RouteNotBuilt(f"route {route} is not built yet: built are {', '.join(map(str, BUILT))}")


@dataclass(frozen=True)
class Attestation:
    """The route that the executed kernels amount to.

    Attributes:
      observed: "manual/valu" and the like; a word is "none" where nothing of the kind executed.
      symbols: launches of each kernel symbol.
      attention_mfma: matrix-core instructions that attention executed, None if nobody counted.
      code_object_sha256: of the code objects the kernels came from.
    """

    observed: str
    symbols: dict[str, int]
    attention_mfma: int | None
    code_object_sha256: tuple[str, ...]


def observe(records: Iterable[LaunchRecord]) -> Attestation:
    """Derives the route from what executed: symbols and instruction counts, never a request."""
    symbols: dict[str, int] = {}
    code_objects = set()
    mfma = counted = 0
    for record in records:
        symbols[record.symbol] = symbols.get(record.symbol, 0) + 1
        code_objects.add(record.code_object_sha256)
        if record.symbol.startswith("attn_"):
            mfma += record.executed.get("mfma", 0)
            counted += bool(record.executed)
    executed = {symbol.split("_")[0] for symbol in symbols}
    if {"rope", "kv", "attn"} <= executed:
        kernel = "manual"
    elif "attn" in executed and not {"rope", "kv"} & executed:
        kernel = "fused"
    else:
        kernel = "none"
    matmul = "none" if "attn" not in executed else "mfma" if mfma else "valu"
    if "attn" in executed and not counted:
        matmul = "uncounted"
    return Attestation(
        f"{kernel}/{matmul}", symbols, mfma if counted else None, tuple(sorted(code_objects))
    )
