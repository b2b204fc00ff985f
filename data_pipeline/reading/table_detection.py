"""Tell a table of text by its first lines: delimiter, quote, escape, header, column of the text."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from data_pipeline.formats.csv_records import Dialect, csv_records
from data_pipeline.reading.text_columns import ALPACA_NAMES, TEXT_NAMES, choose_column
from data_pipeline.schema.corpus_config import CorpusConfig

_USUAL = (",", "\t", ";")
_RARE = ("|", "\x01", "\x1f", "^", "~")
_SNIFFED_ROWS = 60
_LONGEST_NAME = 64
_FITS = 0.9
_HEADER_CELL = re.compile(r"[^\W\d][\w .:/()#%-]{0,63}|")


def table_facts(lines: list[str], corpus: CorpusConfig, *, is_said: bool, is_whole: bool) -> dict[str, Any] | None:
    """Properties of the table in the first lines of a file; None if they are no table.

    Args:
        is_said: corpus.format or the name of the file says that it is a table.
        is_whole: The lines are the whole file.
    """
    delimiters = (corpus.delimiter,) if corpus.delimiter else ("\t",) if corpus.format == "tsv" else _USUAL
    table = partial(_table, lines, corpus=corpus, is_said=is_said, is_whole=is_whole)
    found = _best(map(table, delimiters))
    if found is None and corpus.delimiter is None and corpus.format != "tsv":
        found = _best(map(table, _RARE))
    if found is not None:
        return found
    # Said in the settings, it is a table whatever it looks like.
    is_set = corpus.format in ("csv", "tsv") or corpus.delimiter is not None or corpus.header != "auto"
    return _as_said(lines, _dialect(lines, delimiters[0], corpus), corpus) if is_set else None


def _best(tables: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    found = [facts for facts in tables if facts is not None]
    return max(found, key=lambda facts: (facts["text_column"] is not None, len(facts["columns"])), default=None)


def _table(
    lines: list[str], delimiter: str, *, corpus: CorpusConfig, is_said: bool, is_whole: bool
) -> dict[str, Any] | None:
    """Properties of the table with this delimiter; None if the lines are no such table."""
    dialect = _dialect(lines, delimiter, corpus)
    rows = _sniffed_rows(lines, dialect)
    if not rows:
        return None
    header = [cell.strip() for cell in rows[0]]
    knows_text = _names_text(header, corpus)
    is_header = _is_header(header) or (knows_text and all(0 < len(cell) <= _LONGEST_NAME for cell in header))
    same = sum(len(row) == len(header) for row in rows) / len(rows)
    if corpus.header != "auto" and len(header) > 1 and same >= 0.5:
        return _as_said(lines, dialect, corpus)
    if len(rows) < 2:
        # Without further rows, only a header that is expected is one.
        is_expected = is_said or corpus.text in header or (not is_whole and len(header) > 1)
        return _as_said(lines, dialect, corpus) if is_header and is_expected and knows_text else None
    if len(header) == 1:
        return _as_said(lines, dialect, corpus) if knows_text else None
    if is_header and knows_text and same >= 0.5:
        return _as_said(lines, dialect, corpus)
    if delimiter in _RARE and not (is_header or is_said):
        return None
    # Prose has commas too, but not the same number of them on every line.
    if same >= _FITS and (len(rows) >= 3 or is_said):
        return _as_said(lines, dialect, corpus) | {"has_header": is_header}
    return None


def _names_text(header: list[str], corpus: CorpusConfig) -> bool:
    names = {cell.lower() for cell in header}
    return bool(names & {*TEXT_NAMES} or names.issuperset(ALPACA_NAMES) or corpus.text in header)


def _is_header(header: list[str]) -> bool:
    return all(_HEADER_CELL.fullmatch(cell) for cell in header) and len(set(header)) == len(header)


def _as_said(lines: list[str], dialect: Dialect, corpus: CorpusConfig) -> dict[str, Any]:
    rows = _sniffed_rows(lines, dialect)
    has_header = corpus.header != "none"
    first = rows[0] if rows else []
    columns = tuple(cell.strip() for cell in first)
    if not has_header:
        width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 1
        columns = tuple(str(number) for number in range(1, width + 1))
    below = rows[1:] if has_header else rows
    text_like = [name for index, name in enumerate(columns) if any(_is_prose(row[index : index + 1]) for row in below)]
    column, refused = choose_column(columns, corpus.text, text_like)
    if column == "conversations":
        column, refused = None, "it is a table of conversations, which are read from JSONL and Parquet; write it as one"
    return {
        "format": "csv",
        "delimiter": dialect.delimiter,
        "quote": dialect.quote,
        "escape": dialect.escape,
        "columns": columns,
        "has_header": has_header,
        "text_column": column,
        "refused": refused,
    }


def _dialect(lines: list[str], delimiter: str, corpus: CorpusConfig) -> Dialect:
    """The quote and the escape with which most of the first records have as many fields as the first one."""
    quote = '"' if corpus.quote is None else corpus.quote
    usual = Dialect(delimiter, quote, corpus.escape or "")
    sample = "\n".join(lines)
    candidates = [usual]
    if corpus.escape is None and quote and f"\\{quote}" in sample:
        candidates.append(replace(usual, escape="\\"))
    if corpus.quote is None and re.search(rf"(?m)(?:^|{re.escape(delimiter)})'", sample):
        candidates.append(replace(usual, quote="'"))
    if len(candidates) == 1:
        return usual
    data = sample.encode("utf-8", "replace")
    fits = {dialect: _fit(data, dialect) for dialect in candidates}
    best = max(candidates, key=fits.__getitem__)
    if fits[usual] < _FITS:
        return best
    # The usual characters fit too. Then the others count only if the cells are plainly written with them.
    seen = [one for one in candidates[1:] if fits[one] >= fits[usual] and _is_plainly(sample, one)]
    return seen[0] if seen else usual


def _is_plainly(sample: str, dialect: Dialect) -> bool:
    """True if every quote is at the bounds of a cell or escaped, and cells are quoted on most lines."""
    bound, quote = re.escape(dialect.delimiter), re.escape(dialect.quote)
    if dialect.escape:
        return re.search(rf"(?m)(?<![{bound}\\\n]){quote}(?!{bound}|$)", sample) is None
    lines = [line for line in sample.split("\n")[1:] if line][:_SNIFFED_ROWS]
    quoted = [line for line in lines if re.search(rf"(?:^|{bound}){quote}[^\n]*{quote}(?:{bound}|$)", line)]
    return len(quoted) >= _FITS * len(lines)


def _fit(data: bytes, dialect: Dialect) -> float:
    """Share of the first records that are well-formed, with as many fields as the first one."""
    records = list(islice(csv_records(data, dialect, first_line=1), _SNIFFED_ROWS))
    widths = [None if record.fields is None else len(record.fields) for record in records if record.raw]
    return sum(width is not None and width == widths[0] for width in widths) / max(len(widths), 1)


def _sniffed_rows(lines: list[str], dialect: Dialect) -> list[list[str]]:
    if dialect.quote != '"' or dialect.escape:
        return _own_rows(lines, dialect)
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=dialect.delimiter)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if row:
                rows.append(row)
            if len(rows) == _SNIFFED_ROWS:
                break
    except csv.Error:
        # A field exceeds the reader's limit; the rows before it are enough, if there are any below the header.
        return rows if len(rows) > 1 else _own_rows(lines, dialect)
    return rows


def _own_rows(lines: list[str], dialect: Dialect) -> list[list[str]]:
    data = "\n".join(lines).encode("utf-8", "replace")
    records = (record.fields for record in csv_records(data, dialect, first_line=1) if record.raw)
    fields = (record for record in records if record is not None)
    return [[cell.decode() for cell in row] for row in islice(fields, _SNIFFED_ROWS)]


def _is_prose(cells: list[str]) -> bool:
    return any(" " in cell.strip() for cell in cells)
