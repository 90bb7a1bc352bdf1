"""Floors on disk: a versioned file to hold later runs against, so that no gate loosens unseen.

The file holds the floors at the reference's own inputs, which follow from model, prompt, declared
precision and the derivation alone: the same on every engine and machine, to the digits kept.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.align import records, sites
from experiments.align.errors import FloorsFileError, FloorsOfAnother

SCHEMA = 1
DIGITS = 6
"""Significant digits kept: floors of fp64 arithmetic on another machine differ far beyond them."""


@dataclass(frozen=True)
class Floors:
    """`floors[prompt][layer, site]` is the largest floor over tokens and elements.

    identity: what must be equal for floors to be comparable, as plain JSON values. prompts: name to
    the hash of its text.
    """

    identity: Mapping[str, object]
    prompts: Mapping[str, str]
    floors: Mapping[str, Mapping[tuple[int, str], float]]


def rounded(floor: float) -> float:
    return float(f"{floor:.{DIGITS - 1}e}")


def write(path: Path, found: Floors) -> Path:
    """Raises RecordError if the file cannot be written."""
    stored = {
        "schema": SCHEMA,
        "identity": found.identity,
        "prompts": found.prompts,
        "floors": {
            prompt: [[layer, site, rounded(floor)] for (layer, site), floor in by_place.items()]
            for prompt, by_place in found.floors.items()
        },
    }
    records.write_whole(path, json.dumps(records.plain_values(stored), indent=1) + "\n")
    return path


def read(path: Path) -> Floors:
    """Raises FloorsFileError for a file that is not one of ours, or of another schema."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["schema"] != SCHEMA:
            raise FloorsFileError(
                f"{path} has schema {stored['schema']!r}, this is {SCHEMA}: make it again "
                "with --save_floors"
            )
        floors = {
            prompt: {(int(layer), site): float(floor) for layer, site, floor in rows}
            for prompt, rows in stored["floors"].items()
        }
        return Floors(dict(stored["identity"]), dict(stored["prompts"]), floors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise FloorsFileError(
            f"{path} holds no floors ({type(error).__name__}: {reason}): make it with --save_floors"
        ) from error


def require_comparable(saved: Floors, identity: Mapping, prompts: Mapping[str, str], path: Path):
    """Raises FloorsOfAnother naming the first thing that differs."""
    for name, value in records.plain_values(identity).items():
        if saved.identity.get(name) != value:
            raise FloorsOfAnother(
                f"{path} holds floors of another {name}: {saved.identity.get(name)!r} there, "
                f"{value!r} here"
            )
    for prompt, sha256 in prompts.items():
        if prompt not in saved.prompts:
            raise FloorsOfAnother(f"{path} holds no floors of prompt {prompt}")
        if saved.prompts[prompt] != sha256:
            raise FloorsOfAnother(f"{path} holds floors of another text of prompt {prompt}")


@dataclass(frozen=True)
class Change:
    """Floors of one place that are not those saved; `saved` is None for a place the file lacks."""

    prompt: str
    layer: int
    site: str
    saved: float | None
    now: float

    @property
    def looser(self) -> bool:
        return self.saved is not None and self.now > self.saved

    def sentence(self) -> str:
        where = f"{self.prompt}: {sites.name(self.layer, self.site)}"
        if self.saved is None:
            return f"{where} has no saved floor"
        word = "looser" if self.looser else "tighter"
        return f"the floor of {where} is {word}: {self.now:.6g}, saved {self.saved:.6g}"


def changes(saved: Floors, now: Floors) -> list[Change]:
    """Every place of `now` whose floor is not the saved one."""
    found = []
    for prompt, by_place in now.floors.items():
        for (layer, site), floor in by_place.items():
            before = saved.floors[prompt].get((layer, site))
            if before is None or rounded(before) != rounded(floor):
                found.append(Change(prompt, layer, site, before, floor))
    return found
