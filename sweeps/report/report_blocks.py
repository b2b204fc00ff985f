"""What a report is made of, before it is a page or a text: sections of paragraphs, facts, tables, pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A table cell that is a number: shown rounded, kept whole."""

    value: float
    text: str
    bar: float | None = None
    """Share in [0, 1] drawn behind the number."""


@dataclass(frozen=True)
class Long:
    """A table cell that may be a whole traceback; its last line says what happened."""

    text: str

    @property
    def gist(self) -> str:
        """The last line that is not empty."""
        return next((line.strip() for line in reversed(self.text.splitlines()) if line.strip()), "")

    @property
    def has_more(self) -> bool:
        """Whether the gist leaves something out."""
        return self.text.strip() != self.gist


Cell = str | Number | Long
"""An `Outcome` is a `str` too; a page may give it a colour."""


@dataclass(frozen=True)
class Paragraph:
    """Words. What stands between backticks is code."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Sentences, one below the other."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows under column names; a column of numbers stands to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    name: str = ""
    """Told apart by it when a page is read by a program."""

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers and nothing else but blanks."""
        cells = [row[column] for row in self.rows if row[column] != ""]
        return bool(cells) and all(isinstance(cell, Number) for cell in cells)


@dataclass(frozen=True)
class Code:
    """Text to be shown as it is."""

    text: str
    title: str = ""
    """Given: the text is folded away under it."""


@dataclass(frozen=True)
class Picture:
    """An SVG image."""

    svg: str
    caption: str


Block = Paragraph | Bullets | Facts | Table | Code | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Name to jump to."""
        return "".join(char if char.isalnum() else "-" for char in self.title.lower())


def number(value: float | None, form: str = ",.4f", *, bar: float | None = None) -> Cell:
    """A cell for a number that may be missing; not finite is said so."""
    if value is None:
        return ""
    return Number(value, format(value, form) if math.isfinite(value) else str(value), bar)


def without_empty_columns(table: Table) -> Table:
    """The same table less the columns in which no row says anything."""
    kept = [index for index in range(len(table.columns)) if any(row[index] != "" for row in table.rows)]
    rows = [[row[index] for index in kept] for row in table.rows]
    return Table([table.columns[index] for index in kept], rows, table.name)
