"""What a page says, apart from how it looks: verdict, facts, sections with a figure and a table."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

PASS, FAIL, DOUBT = "pass", "fail", "doubt"
TONES = {0: PASS, 1: FAIL}


def tone(exit_code: int) -> str:
    """How an exit code looks; whatever is neither pass nor fail is doubt."""
    return TONES.get(exit_code, DOUBT)


def number(value: float | None) -> str:
    """Three significant digits; a dash for what was not measured."""
    if value is None or value != value:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


@dataclass(frozen=True)
class Link:
    """A cell that leads to another file."""

    text: str
    href: str


class Cell(NamedTuple):
    """A cell as it is set."""

    text: str
    tone: str
    kind: str
    href: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text, numbers or links. `tones`: of the cells of the last column, by their text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    tones: Mapping[str, str] = field(default_factory=dict)

    def cells(self) -> list[list[Cell]]:
        return [[self._cell(value, i) for i, value in enumerate(row)] for row in self.rows]

    def _cell(self, value: object, column: int) -> Cell:
        if isinstance(value, Link):
            return Cell(value.text, "", "text", value.href)
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        text = number(value) if isinstance(value, float) else "–" if value is None else str(value)
        last = column == len(self.columns) - 1
        return Cell(text, self.tones.get(text, "") if last else "", "number" if numeric else "text")


@dataclass(frozen=True)
class Figure:
    """A Vega-Lite plot and what a reader without a pointer needs of it.

    name: of its file and element. spec: Vega-Lite. says: the text for those who cannot see it.
    axes: the fields a keyboard cursor moves along, across then down; empty for none. opens: what a
    click shows (`heads` at a layer and site, `sites` at a layer and token), empty for nothing.
    detail: key of the page's detail that the click looks into.
    """

    name: str
    spec: dict
    says: str
    axes: tuple[str, ...] = ()
    opens: str = ""
    detail: str = ""

    @property
    def is_map(self) -> bool:
        """Whether it is made of cells, which must not become too narrow to hit."""
        marks = [layer["mark"] for layer in self.spec.get("layer", [self.spec]) if "mark" in layer]
        return any(mark["type"] == "rect" for mark in marks)


@dataclass(frozen=True)
class Section:
    """One question, its answer in words, the figure, the table behind it and how to repeat it.

    `about`: the prompt that it is of, if the page has several.
    """

    title: str
    words: str
    figure: Figure | None = None
    table: Table | None = None
    command: str = ""
    open_table: bool = False
    about: str = ""

    @property
    def heading(self) -> str:
        return f"{self.title}, {self.about}" if self.about else self.title

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.heading.lower()).strip("-")


def about(prompt: str, sections: Iterable[Section]) -> list[Section]:
    """The same sections, of that prompt."""
    return [replace(section, about=prompt) for section in sections]


@dataclass(frozen=True)
class Page:
    """One file: `verdict` and `sentences` come first. `details` feed the click-through."""

    title: str
    verdict: str
    tone: str
    sentences: Sequence[str]
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    command: str
    details: Mapping[str, dict] = field(default_factory=dict)

    @property
    def contents(self) -> list[tuple[str, list[Section]]]:
        """Sections that follow each other and are about the same."""
        return [(about, list(found)) for about, found in groupby(self.sections, lambda s: s.about)]
