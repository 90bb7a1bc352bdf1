"""Maps from an engine's tensor names to sites: YAML, with dims and dtype declared.

    tensors:
      "blk.{layer}.q": {site: attn.q, dims: T(NH), dtype: float16, order: halves}

dims: the axes as they are written, in the letters of the dimension key; letters in parentheses
share one axis, and 1 is an axis of one. dtype: what the engine stores there; accumulate (float32
if left out) and the other keys of the engine's declared precision may follow. order: halves, where
head elements are in the order that rotates i with i + H/2. site: one, or a list of those that this
tensor is. `unstored:` declares the arithmetic of a site that no name is; `ignore:` lists names to
pass over.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from experiments.align import sites
from experiments.align.errors import TraceError

SHIPPED = Path(__file__).resolve().parent / "maps"
PRECISION = ("dtype", "accumulate", "chain", "operand", "exp_ulp", "rescales", "angle")
KEYS = ("site", "dims", "order", *PRECISION)
ORDERS = ("pairs", "halves")
AXES = re.compile(r"\(([A-Z]+)\)|([A-Z1])")


@dataclass(frozen=True)
class Tensor:
    """One name. `axes`: the letters of each axis, "" for an axis of one."""

    name: str
    sites: tuple[str, ...]
    axes: tuple[str, ...]
    halves: bool
    precision: Mapping[str, object]

    @property
    def letters(self) -> str:
        return "".join(self.axes)

    def arranged(self, array: np.ndarray, dims: Mapping[str, int], where: str) -> np.ndarray:
        """The tensor with its axes as the sites have them, T or S first. Raises TraceError."""
        if array.ndim != len(self.axes):
            raise TraceError(f"{where}: shape {array.shape}, the map declares {self._declared()}")
        sizes = []
        for length, letters in zip(array.shape, self.axes, strict=True):
            free = [letter for letter in letters if letter in "TS"]
            expected = math.prod(dims[letter] for letter in letters if letter not in "TS")
            if length != expected and not free:
                raise TraceError(
                    f"{where}: shape {array.shape}, but {letters or 1} is {expected} in this "
                    f"model (the map declares {self._declared()})"
                )
            sizes += [length if letter in "TS" else dims[letter] for letter in letters]
        split = array.reshape(sizes)
        wanted = self._wanted()
        moved = split.transpose([self.letters.index(letter) for letter in wanted])
        return _as_pairs(moved) if self.halves else moved

    def _wanted(self) -> str:
        """The order of the site's own axes; rows of a cache may be given a token at a time."""
        shape = sites.SHAPES[self.sites[0]]
        return shape if "S" in self.letters else shape.replace("S", "T")

    def _declared(self) -> str:
        return "".join(f"({a})" if len(a) > 1 else a or "1" for a in self.axes)


def _as_pairs(array: np.ndarray) -> np.ndarray:
    """Head elements from the half-split order (i with i + H/2) to GGUF's, pairs (2i, 2i+1)."""
    *rest, H = array.shape
    return array.reshape(*rest, 2, H // 2).swapaxes(-1, -2).reshape(array.shape)


@dataclass(frozen=True)
class NameMap:
    """`ignored`: patterns of names that are known and of no use here. `unstored`: what is declared
    of sites that the engine computes but that no name is."""

    path: Path
    tensors: tuple[Tensor, ...]
    ignored: tuple[re.Pattern, ...] = ()
    unstored: Mapping[str, Mapping] = field(default_factory=dict)
    patterns: tuple[re.Pattern, ...] = field(default=(), repr=False)

    def find(self, name: str) -> tuple[int, Tensor] | None:
        """Layer (sites.NO_LAYER where there is none) and meaning of a name; None if unknown."""
        for pattern, tensor in zip(self.patterns, self.tensors, strict=True):
            if match := pattern.fullmatch(name):
                return int(match.groupdict().get("layer") or sites.NO_LAYER), tensor
        return None

    def ignores(self, name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in self.ignored)

    @property
    def sites(self) -> frozenset[str]:
        return frozenset(site for tensor in self.tensors for site in tensor.sites)

    def precision(self) -> dict[str, dict]:
        """What the map declares of each site, as bounds want it."""
        listed = [(site, t.precision) for t in self.tensors for site in t.sites]
        found = {}
        for site, declared in (*listed, *self.unstored.items()):
            if "dtype" in declared:
                rest = {key: value for key, value in declared.items() if key != "dtype"}
                found[site] = {"store": declared["dtype"], "accumulate": "float32"} | rest
        return found


def load(name: str) -> NameMap:
    """A shipped map by name, or a file. Raises TraceError naming the line's key that is wrong."""
    shipped = {path.stem: path for path in SHIPPED.glob("*.yaml")}
    path = shipped.get(name) or Path(name)
    try:
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        known = ", ".join(sorted(shipped))
        raise TraceError(f"no map {name!r} ({reason}): use one of {known}, or a file") from error
    keys = set(parsed) if isinstance(parsed, dict) else set()
    if not {"tensors"} <= keys <= {"tensors", "unstored", "ignore"}:
        raise TraceError(
            f"{path}: a map has `tensors:`, perhaps `unstored:` and `ignore:`, no more"
        )
    if not isinstance(parsed["tensors"], dict):
        raise TraceError(f"{path}: `tensors:` maps names to {{site, dims, dtype}}")
    tensors = tuple(_tensor(path, str(key), entry) for key, entry in parsed["tensors"].items())
    ignored = tuple(_pattern(str(text)) for text in parsed.get("ignore") or ())
    unstored = parsed.get("unstored") or {}
    for site, declared in unstored.items():
        if site not in sites.SHAPES or set(declared) - set(PRECISION):
            raise TraceError(f"{path}: unstored {site!r} is no site, or has an unknown key")
    patterns = tuple(_pattern(tensor.name) for tensor in tensors)
    return NameMap(path, tensors, ignored, unstored, patterns)


def _pattern(name: str) -> re.Pattern:
    """`{layer}` and `{n}` stand for numbers, `*` for anything."""
    escaped = re.escape(name).replace(r"\{layer\}", r"(?P<layer>\d+)")
    return re.compile(escaped.replace(r"\{n\}", r"\d+").replace(r"\*", ".*"))


def _tensor(path: Path, name: str, entry: object) -> Tensor:
    where = f"{path}: {name!r}"
    if not isinstance(entry, dict) or "site" not in entry or "dims" not in entry:
        raise TraceError(f"{where} needs a site and dims")
    if unknown := set(entry) - set(KEYS):
        raise TraceError(f"{where}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(KEYS)}")
    listed = entry["site"] if isinstance(entry["site"], list) else [entry["site"]]
    if wrong := [site for site in listed if site not in sites.SHAPES]:
        raise TraceError(f"{where}: {wrong[0]!r} is no site; known: {', '.join(sites.SITES)}")
    if (order := entry.get("order", "pairs")) not in ORDERS:
        raise TraceError(f"{where}: order {order!r}; use one of {', '.join(ORDERS)}")
    if ("{layer}" in name) == any(s in sites.HEAD_SITES + sites.TAIL_SITES for s in listed):
        raise TraceError(f"{where}: {{layer}} belongs in names of sites that layers have")
    text = str(entry["dims"])
    axes = tuple(group or single.replace("1", "") for group, single in AXES.findall(text))
    if "".join(AXES.sub("", text).split()):
        raise TraceError(f"{where}: dims {text!r} is not like TD, T(NH) or 1KTH")
    for site in listed:
        allowed = (
            (shape := sites.SHAPES[site]),
            shape.replace("S", "T") if shape[0] == "S" else shape,
        )
        if sorted("".join(axes)) not in [sorted(letters) for letters in allowed]:
            raise TraceError(f"{where}: dims {text!r} are not those of {site}, {shape}")
    precision = {key: entry[key] for key in PRECISION if key in entry}
    return Tensor(name, tuple(listed), axes, order == "halves", precision)
