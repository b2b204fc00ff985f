"""Rows of tables with their text and further columns, such as labels and identifiers.

The corpus readers read them, so rows are kept and rejected by the same rules.
"""

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from data_pipeline.formats.csv_records import csv_records
from data_pipeline.reading.corpus import Corpus
from data_pipeline.reading.corpus_files import find_files
from data_pipeline.reading.file_formats import FileKind
from data_pipeline.reading.file_inspection import examine_files
from data_pipeline.reading.pieces import Piece, pieces_of, row_encoding
from data_pipeline.reading.row_readers import check_text, contents_of
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError, corpus_at
from data_pipeline.schema.redaction import redact_url
from data_pipeline.schema.rejects import Reason, Reject, excerpt_of
from data_pipeline.tokens.chat_template import Dialogue

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TableRow:
    """One kept row."""

    number: int
    """Index of the row in the table, from 0; rejected rows are counted."""
    file: str
    line: int
    """First physical line of the row, from 1; row number in Parquet."""
    text: str
    cells: dict[str, str]
    """Values of the requested columns; "" if the row lacks one."""


@dataclass(frozen=True)
class SettingNames:
    """Names of the reading settings as the user writes them (command line or YAML), for error messages."""

    text: str = "--text"
    label: str = "--classify"
    least_rows: str = "--least-rows"
    max_tokens: str = "--max-tokens"
    before_value: str = " "
    """Separator between a name and its value."""


ON_THE_COMMAND_LINE = SettingNames()


def open_table(path: str, *, text: str | None, names: SettingNames = ON_THE_COMMAND_LINE) -> Corpus:
    """The table in a file, folder or glob. Files are examined, rows are not read yet.

    Args:
        text: Column of the text. None: detected by its name, or the only text column.
        names: Names of the settings in error messages.

    Raises:
        CorpusError: No file, no table, a table of conversations, or no such column (with the nearest spelling).
    """
    config = corpus_at(path, text=text)
    table = examine_files(find_files(config), config, memory=None)
    for kind in table.files:
        if text is not None and kind.columns and text not in kind.columns:
            option = names.text + names.before_value
            raise CorpusError(f"{kind.path} {missing_column(text, kind.columns, option=option)}")
        if kind.refused is not None:
            raise CorpusError(f"{kind.path}: {kind.refused.replace('corpus.text', names.text)}")
        if kind.has_dialogues:
            raise CorpusError(f"{kind.path} holds conversations, not texts; name a column of texts with {names.text}")
    return table


def columns_of(table: Corpus) -> tuple[str, ...]:
    """All columns of all files, in their order."""
    return tuple(dict.fromkeys(name for kind in table.files for name in kind.columns))


def missing_column(wanted: str, columns: Sequence[str], *, option: str) -> str:
    """Message part about a missing column: `has no column 'labl'; did you mean --classify label?`.

    Args:
        option: Setting that names a column, up to its value.
    """
    if not columns:
        return f"has no columns, so no {wanted!r}: it is plain text; give CSV, JSONL or Parquet"
    near = difflib.get_close_matches(wanted.lower(), [name.lower() for name in columns], n=1, cutoff=0.5)
    meant = next((name for name in columns if near and name.lower() == near[0]), None)
    return f"has no column {wanted!r}; " + (
        f"did you mean {option}{meant}?" if meant is not None else f"its columns are {', '.join(columns)}"
    )


def table_rows(
    table: Corpus, columns: Sequence[str] = (), *, on_reject: Callable[[Reject], None] = lambda _: None
) -> Iterator[TableRow]:
    """Every row with a valid text, in reading order; memory use does not grow with the table.

    Args:
        columns: Columns to return in `cells`.
        on_reject: Called with every rejected row.
    """
    number = 0
    for file_number, kind in enumerate(table.files):
        wanted = tuple(name for name in columns if name in kind.columns)
        reading = replace(kind, kept_columns=wanted)
        for piece in pieces_of(reading, table.config, file=file_number, piece_bytes=_PIECE_BYTES):
            for row in _rows_of_piece(piece, reading, table.config):
                if isinstance(row, Reject):
                    on_reject(row)
                else:
                    yield replace(row, number=number, cells=dict.fromkeys(columns, "") | row.cells)
                number += 1
        if kind.damage is not None:
            on_reject(Reject(kind.path, 0, Reason.FILE_DAMAGED, kind.damage))


def _rows_of_piece(piece: Piece, kind: FileKind, config: CorpusConfig) -> Iterator[TableRow | Reject]:
    if piece.reject is not None:
        yield Reject(kind.path, piece.first_line, piece.reject, excerpt_of(piece.data))
        return
    for line, raw, content in contents_of(piece, kind, config):
        if content is None:
            continue
        assert not isinstance(content, list), "open_table refuses conversations"
        text = check_text(content)
        assert not isinstance(text, Dialogue)
        cells = text if isinstance(text, Reason) else _cells(raw, kind)
        # Reason is a subclass of str, so test for it first.
        if isinstance(cells, Reason):
            yield Reject(kind.path, line, cells, excerpt_of(raw))
        else:
            yield TableRow(0, redact_url(kind.path), line, text, cells)


def _cells(raw: bytes, kind: FileKind) -> dict[str, str] | Reason:
    """Values of the kept columns of one row, as text."""
    if not kind.kept_columns:
        return {}
    if kind.format == "csv":
        fields = next(csv_records(raw, kind.dialect, first_line=1)).fields or []
        try:
            return {
                name: fields[kind.columns.index(name)].decode(row_encoding(kind)).strip() for name in kind.kept_columns
            }
        except UnicodeDecodeError:
            return Reason.UNDECODABLE
    row = json.loads(raw.decode(row_encoding(kind)))
    return {name: _as_text(row.get(name)) for name in kind.kept_columns}


def _as_text(value: object) -> str:
    if value is None:
        return ""
    # Text stays as it is; numbers and booleans are written as in JSON.
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
