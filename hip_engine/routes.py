"""Routes of decode attention: what they are called, which are built, and what each must execute."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from hip_engine.config import ModelConfig
from hip_engine.errors import RouteNotBuilt, UnknownRoute
from hip_engine.kv_types import KV_TYPES, KvType

KERNEL_WORDS = ("manual", "fused", "auto")
MATMUL_WORDS = ("valu", "mfma", "auto")


@dataclass(frozen=True)
class Route:
    """`kernel`/`matmul`: REQUIREMENTS says what each word must have executed.

    In auto, the words are chosen from what is built (`resolve`).
    """

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


class Requirements(NamedTuple):
    """What one layer of decode must have launched to be called by a kernel word.

    Attributes:
      cache_kernels: kernels that hold the cache's address: append and attention, or one that is
        both. separate_rope: whether the rotation of q and k is a kernel of its own.
    """

    cache_kernels: int
    separate_rope: bool


# Of the matmul word: mfma if attention executes matrix-core instructions, valu if it executes none.
REQUIREMENTS = {"manual": Requirements(2, True), "fused": Requirements(1, False)}
BUILT = tuple(Route(k, m) for k in ("manual", "fused") for m in ("valu", "mfma"))
HEAD_DIMS = (64, 80, 96, 128, 256)
MERGE = "attn_merge_chunks"
# With fewer heads a group most of a 16x16 tile's columns would idle.
MFMA_FROM_GROUP = 8


def check(route: Route, kind: KvType):
    """What can be said before there is a model.

    Raises:
      RouteNotBuilt: impossible with this cache, with the nearest that are possible.
    """
    if route.matmul == "mfma" and kind.operands is None:
        narrow = ", ".join(kind.name for kind in KV_TYPES.values() if kind.operands)
        raise RouteNotBuilt(
            f"{route} multiplies 16-bit operands, the cache is {kind.name}: nearest are "
            f"{route.kernel}/valu, and {route} with a cache of {narrow}"
        )


def resolve(route: Route, kind: KvType, config: ModelConfig) -> tuple[Route, str]:
    """The concrete route that `route` stands for, and why.

    Raises:
      RouteNotBuilt: impossible for this model or cache, with the nearest that are possible.
    """
    if config.H not in HEAD_DIMS:
        nearest = sorted(HEAD_DIMS, key=lambda H: abs(H - config.H))[:2]
        raise RouteNotBuilt(
            f"{route} with a {kind.name} cache: no attention kernel for head size {config.H}: "
            f"nearest are {nearest[0]} and {nearest[1]} (built: {', '.join(map(str, HEAD_DIMS))})"
        )
    check(route, kind)
    kernel, matmul, reasons = route.kernel, route.matmul, []
    if kernel == "auto":
        kernel = "fused"
        reasons.append("fused launches least")
    if matmul == "auto":
        wide = kind.operands is not None and config.G >= MFMA_FROM_GROUP
        matmul = "mfma" if wide else "valu"
        reasons.append(f"{matmul} for groups of {config.G} and a {kind.name} cache")
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
