"""The parts of a report, before they become a page or a text: sections of paragraphs, facts, tables, pictures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A table cell with a number: shown rounded, kept exact."""

    value: float
    text: str
    bar: float | None = None
    """Share in [0, 1] drawn behind the number."""


@dataclass(frozen=True)
class Long:
    """A table cell that may hold a whole traceback; its last line names the error."""

    text: str

    @property
    def gist(self) -> str:
        """The last line that is not empty."""
        return next((line.strip() for line in reversed(self.text.splitlines()) if line.strip()), "")

    @property
    def has_more(self) -> bool:
        """Whether the text is longer than its gist."""
        return self.text.strip() != self.gist


Cell = str | Number | Long
"""An `Outcome` is a `str` too; the page gives it a colour."""


@dataclass(frozen=True)
class Paragraph:
    """Running text. Backticks mark code."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows under column names; columns of numbers are right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    name: str = ""
    """Identifies the table for a program that reads the page."""

    def is_numeric(self, column: int) -> bool:
        """Whether all cells of a column are numbers or blank, with one number at least."""
        cells = [row[column] for row in self.rows if row[column] != ""]
        return bool(cells) and all(isinstance(cell, Number) for cell in cells)


@dataclass(frozen=True)
class Code:
    """Verbatim text."""

    text: str
    title: str = ""
    """If given, the text is folded under this title."""


@dataclass(frozen=True)
class Picture:
    """An SVG image."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Failed:
    """A picture that could not be drawn; the report names it in its place."""

    name: str
    error: Exception


Block = Paragraph | Bullets | Facts | Table | Code | Picture | Failed


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Id of the section in the page; links point to it."""
        return "".join(char if char.isalnum() else "-" for char in self.title.lower())


def drawn(name: str, draw: Callable[[], str | None], caption: Callable[[], str]) -> list[Block]:
    """A picture as a block; nothing where there is nothing to draw, and `Failed` where that fails.

    Args:
        name: Name of the picture in words, for a failure.
        draw: Returns the SVG, or None.
        caption: Called if there is a picture.
    """
    try:
        svg = draw()
        return [] if svg is None else [Picture(svg, caption())]
    except Exception as error:
        return [Failed(name, error)]


def number(value: float | None, form: str = ",.4f", *, bar: float | None = None) -> Cell:
    """A cell for a number; blank for None. NaN and infinity are shown by name."""
    if value is None:
        return ""
    return Number(value, format(value, form) if math.isfinite(value) else str(value), bar)


def without_empty_columns(table: Table) -> Table:
    """The table without its blank columns."""
    kept = [index for index in range(len(table.columns)) if any(row[index] != "" for row in table.rows)]
    rows = [[row[index] for index in kept] for row in table.rows]
    return Table([table.columns[index] for index in kept], rows, table.name)
