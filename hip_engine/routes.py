"""Routes of decode attention: what they are called, which are built, and what each must execute."""

from collections.abc import Iterable
from dataclasses import dataclass

from hip_engine.config import ModelConfig
from hip_engine.device import LaunchRecord
from hip_engine.errors import RouteNotBuilt, UnknownRoute
from hip_engine.kv_types import KV_TYPES, KvType

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


BUILT = tuple(Route(k, m) for k in ("manual", "fused") for m in ("valu", "mfma"))
HEAD_DIMS = (64, 80, 96, 128, 256)
MERGE = "attn_merge_chunks"
# With fewer heads a group most of a 16x16 tile's columns would idle.
MFMA_FROM_GROUP = 8


def resolve(
    route: Route, kind: KvType = KV_TYPES["float16"], config: ModelConfig | None = None
) -> tuple[Route, str]:
    """The concrete route that `route` stands for, and why; without `config`, for small groups.

    Raises:
      RouteNotBuilt: impossible for this model or cache, with what is possible.
    """
    if config is not None and config.H not in HEAD_DIMS:
        built = ", ".join(map(str, HEAD_DIMS))
        raise RouteNotBuilt(f"no attention kernel for head size {config.H}: built are {built}")
    if route.matmul == "mfma" and kind.operands is None:
        raise RouteNotBuilt(
            f"{route} multiplies 16-bit operands, the cache is {kind.name}: "
            f"use {route.kernel}/valu, or a float16 or bfloat16 cache"
        )
    kernel, matmul, reasons = route.kernel, route.matmul, []
    if kernel == "auto":
        kernel = "fused"
        reasons.append("fused launches least")
    if matmul == "auto":
        G = config.G if config is not None else 1
        matmul = "mfma" if kind.operands is not None and G >= MFMA_FROM_GROUP else "valu"
        reasons.append(f"{matmul} for groups of {G} and a {kind.name} cache")
    return Route(kernel, matmul), "; ".join(reasons) or "asked for"


def attention_symbol(
    symbols: Iterable[str], route: Route, kind: KvType, config: ModelConfig
) -> str:
    """The kernel with the smallest head tile that holds a group, else the largest tile there is.

    Raises:
      RouteNotBuilt: the code object has none for this head size and cache type.
    """
    family = f"attn_{route.kernel}_{route.matmul}_{kind.symbol}_h{config.H}_g"
    tiles = sorted(int(s.removeprefix(family)) for s in symbols if s.startswith(family))
    if not tiles:
        raise RouteNotBuilt(f"no kernel {family}* in the code object")
    tile = next((tile for tile in tiles if tile >= config.G), tiles[-1])
    return f"{family}{tile}"


@dataclass(frozen=True)
class Attestation:
    """The route that the executed kernels amount to.

    Attributes:
      observed: "manual/valu" and the like; a word is "none" where nothing of the kind executed,
        "mixed" where launches differ, "uncounted" where the device cannot count instructions.
      symbols: launches of each kernel symbol.
      attention_mfma: matrix-core instructions that attention executed, None if nobody counted.
      code_object_sha256: of the code objects the kernels came from.
    """

    observed: str
    symbols: dict[str, int]
    attention_mfma: int | None
    code_object_sha256: tuple[str, ...]


def observe(records: Iterable[LaunchRecord]) -> Attestation:
    """Derives the route from what executed: symbols and instruction counts, never a request.

    Every launch of attention is judged by itself and by what was launched since the one before;
    launches that differ make a route "mixed".
    """
    symbols: dict[str, int] = {}
    code_objects, kernels, matmuls, counts = set(), set(), set(), []
    before: set[str] = set()
    for record in records:
        symbols[record.symbol] = symbols.get(record.symbol, 0) + 1
        code_objects.add(record.code_object_sha256)
        if not record.symbol.startswith("attn_") or record.symbol == MERGE:
            before.add(record.symbol.split("_")[0])
            continue
        separate = {"rope", "kv"} & before
        kernels.add({0: "fused", 1: "mixed", 2: "manual"}[len(separate)])
        mfma = record.executed.get("mfma", 0)
        matmuls.add(("mfma" if mfma else "valu") if record.executed else "uncounted")
        counts.append(mfma if record.executed else None)
        before = set()
    total = None if None in counts or not counts else sum(counts)
    observed = f"{_one_of(kernels)}/{_one_of(matmuls)}"
    return Attestation(observed, symbols, total, tuple(sorted(code_objects)))


def _one_of(words: set[str]) -> str:
    return "none" if not words else "mixed" if len(words) > 1 else words.pop()
