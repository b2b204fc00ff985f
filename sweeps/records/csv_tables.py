"""CSV files that people open in a spreadsheet: no text of them is a formula there."""

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import IO, Any

_BEGIN_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""Source: OWASP, CSV injection."""


def write_csv(file: IO[str], columns: Sequence[str], rows: Iterable[Sequence[Any]], *, line_end: str = "\n") -> None:
    """Write a header and rows. A text that a spreadsheet would take for a formula gets a leading `'`.

    Numbers stay numbers, negative ones as well. None is an empty cell.
    """
    line = io.StringIO(newline="")
    # Python's writer quotes a carriage return only if its own lines end with one; unquoted, it would begin a new row.
    writer = csv.writer(line, lineterminator="\r\n")
    for row in chain([columns], rows):
        writer.writerow([_cell(value) for value in row])
        file.write(line.getvalue().removesuffix("\r\n") + line_end)
        line.seek(0)
        line.truncate()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_BEGIN_FORMULAS) else value
