"""YAML whose every value knows its line, so that a refusal can name it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from experiments.batch.errors import SuiteError

_PLAIN = {"tag:yaml.org,2002:int": int, "tag:yaml.org,2002:float": float}


@dataclass(frozen=True)
class At:
    """A node of the file, and the words to refuse it with."""

    path: Path
    node: yaml.Node

    @property
    def line(self) -> int:
        return self.node.start_mark.line + 1

    def error(self, what: str) -> SuiteError:
        return SuiteError(f"{self.path}:{self.line}: {what}")

    def mapping(self, known: Iterable[str] = ()) -> dict[str, "At"]:
        """The entries of a mapping. Refuses unknown keys (if `known`) and keys given twice."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("expected `key: value` lines here")
        found: dict[str, At] = {}
        for key_node, value in self.node.value:
            key, at = key_node.value, At(self.path, key_node)
            if known and key not in known:
                near = difflib.get_close_matches(key, list(known), 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise at.error(f"unknown key {key!r}: {hint}")
            if key in found:
                raise at.error(f"key {key!r} is given twice, first in line {found[key].line}")
            found[key] = At(self.path, value)
        return found

    def items(self) -> list["At"]:
        """The items of a list that is not empty."""
        if not isinstance(self.node, yaml.SequenceNode) or not self.node.value:
            raise self.error("expected a list with at least one item")
        return [At(self.path, item) for item in self.node.value]

    def text(self) -> str:
        """A scalar as the text it was written as."""
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.error("expected one value, not a list or a mapping")
        return self.node.value

    def number(self) -> float:
        """A number above zero."""
        plain = _PLAIN.get(self.node.tag)
        if plain is None or not (value := plain(self.text())) > 0:
            raise self.error(f"expected a number above 0, not {self.text()!r}")
        return value

    @property
    def is_scalar(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode)


def parse(path: Path) -> At:
    """The root of a YAML file. Raises SuiteError."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SuiteError(f"{path}{line}: {getattr(error, 'problem', None) or error}") from error
    if root is None:
        raise SuiteError(f"{path}:1: the file is empty")
    return At(path, root)
