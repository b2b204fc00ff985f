"""Bytes to documents: each row of a piece is kept, rejected with a reason, or counted as a blank line."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.files.plain_json import is_nested_too_deep
from data_pipeline.formats.csv_records import csv_records
from data_pipeline.reading.conversations import alpaca_turns_of, turns_of
from data_pipeline.reading.file_formats import FileKind
from data_pipeline.reading.pieces import Piece, row_encoding
from data_pipeline.reading.text_columns import TURN_NAMES
from data_pipeline.schema.corpus_config import CorpusConfig
from data_pipeline.schema.rejects import Reason, Reject, excerpt_of
from data_pipeline.tokens.chat_template import ChatTemplate, Dialogue, Turn

# A run of CR is looked at from its beginning only: from each of its bytes it would take quadratic time.
_LINE_END = re.compile(rb"(?<!\r)\r++\n|[\r\n]")
_Content = str | Dialogue | Reason
_Read = str | list[Turn] | Reason
_scan_json: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


@dataclass(slots=True)
class ReadRows:
    """The rows of a piece."""

    texts: list[str] = field(default_factory=list)
    target_spans: list[list[tuple[int, int]]] | None = None
    """Conversations: (start, stop) of the predicted characters of each text."""
    rejects: list[Reject] = field(default_factory=list)
    num_blank_lines: int = 0

    @property
    def num_rows(self) -> int:
        """Number of rows read, kept or rejected."""
        return len(self.texts) + len(self.rejects)


def read_piece(piece: Piece, kind: FileKind, corpus: CorpusConfig, template: ChatTemplate) -> ReadRows:
    """All rows of a piece.

    Args:
        template: Writes conversations as texts.
    """
    rows = ReadRows(target_spans=[] if kind.has_dialogues else None)
    if piece.reject is not None:
        rows.rejects.append(Reject(kind.path, piece.first_line, piece.reject, excerpt_of(piece.data)))
        return rows
    for line, raw, content in contents_of(piece, kind, corpus):
        if content is None:
            rows.num_blank_lines += 1
            continue
        kept = check_text(template.dialogue(content) if isinstance(content, list) else content)
        if isinstance(kept, Reason):
            rows.rejects.append(Reject(kind.path, line, kept, excerpt_of(raw)))
            continue
        if isinstance(kept, Dialogue):
            assert rows.target_spans is not None
            rows.texts.append(kept.text)
            rows.target_spans.append(kept.target_spans)
        else:
            rows.texts.append(kept)
    return rows


def check_text(content: _Content) -> _Content:
    """The content unchanged, or the reason for rejecting its text (empty, NUL, lone surrogate)."""
    if isinstance(content, Reason):
        return content
    text = content.text if isinstance(content, Dialogue) else content
    if not text or text.isspace():
        return Reason.EMPTY_TEXT
    if "\0" in text:
        return Reason.NUL
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return Reason.LONE_SURROGATE
    return content


def contents_of(piece: Piece, kind: FileKind, corpus: CorpusConfig) -> Iterator[tuple[int, bytes, _Read | None]]:
    """(line, raw bytes, content) of every row of a piece; content None means a blank line."""
    longest = corpus.longest_row_bytes
    for line, raw, content in _contents_of_any_length(piece, kind, corpus):
        yield line, raw, content if len(raw) <= longest or content is None else Reason.TOO_LONG


def _contents_of_any_length(
    piece: Piece, kind: FileKind, corpus: CorpusConfig
) -> Iterator[tuple[int, bytes, _Read | None]]:
    if kind.format == "csv":
        return _csv_rows(piece, kind)
    if kind.format in ("jsonl", "json", "parquet", "arrow"):
        return _json_rows(piece, kind)
    if corpus.documents == "paragraphs":
        return _paragraphs(piece, kind)
    if corpus.documents == "files":
        return iter([(1, piece.data, _decoded(_LINE_END.sub(b"\n", piece.data), kind))])
    return _text_lines(piece, kind)


def _decoded(raw: bytes, kind: FileKind) -> str | Reason:
    try:
        return raw.decode(row_encoding(kind))
    except UnicodeDecodeError:
        return Reason.UNDECODABLE


def _lines(piece: Piece) -> list[bytes]:
    lines = _LINE_END.split(piece.data) if b"\r" in piece.data else piece.data.split(b"\n")
    if not lines[-1]:
        lines.pop()  # The empty rest behind the last line end is no line.
    return lines


def _text_lines(piece: Piece, kind: FileKind) -> Iterator[tuple[int, bytes, _Read | None]]:
    for line, raw in enumerate(_lines(piece), start=piece.first_line):
        text = _decoded(raw, kind)
        is_blank = isinstance(text, str) and (not text or text.isspace())
        yield line, raw, None if is_blank else text


def _paragraphs(piece: Piece, kind: FileKind) -> Iterator[tuple[int, bytes, _Read | None]]:
    """Groups of lines between blank lines, each joined by line feeds."""
    first_line, gathered = piece.first_line, list[bytes]()
    for line, raw in enumerate([*_lines(piece), b""], start=piece.first_line):
        if raw.strip():
            first_line = first_line if gathered else line
            gathered.append(raw)
        elif gathered:
            paragraph = b"\n".join(gathered)
            yield first_line, paragraph, _decoded(paragraph, kind)
            gathered = []


def _json_rows(piece: Piece, kind: FileKind) -> Iterator[tuple[int, bytes, _Read | None]]:
    lines = piece.data.split(b"\n")
    if piece.lines is None and not lines[-1]:
        lines.pop()
    numbers = piece.lines or range(piece.first_line, piece.first_line + len(lines))
    for line, raw in zip(numbers, lines, strict=True):
        if not raw or raw.isspace():
            yield line, raw, None
        else:
            yield line, raw, _json_content(raw, kind)


def _json_content(raw: bytes, kind: FileKind) -> _Read:
    text = _decoded(raw.strip(b" \t\r"), kind)
    if isinstance(text, Reason):
        return text
    if is_nested_too_deep(text):
        return Reason.NESTED_TOO_DEEP
    try:
        # json.loads without its two white-space searches, which take a sixth of the time for short rows.
        row, end = _scan_json(text, 0)
    except (ValueError, StopIteration):
        return Reason.MALFORMED_JSON
    if end != len(text):
        return Reason.MALFORMED_JSON
    if kind.text_column is None:
        return row if isinstance(row, str) else Reason.NOT_TEXT
    if not isinstance(row, dict):
        return Reason.NOT_AN_OBJECT
    if kind.text_column == "conversations":
        turns = next((row[name] for name in TURN_NAMES if name in row), None)
        return Reason.NO_TEXT_KEY if turns is None else turns_of(turns)
    if kind.text_column == "alpaca":
        return alpaca_turns_of(row) if "instruction" in row else Reason.NO_TEXT_KEY
    return _text_of(row, raw, text, kind.text_column)


def _text_of(row: dict[str, Any], raw: bytes, line: str, key: str) -> str | Reason:
    if key not in row:
        return Reason.NO_TEXT_KEY
    value = row[key]
    if raw.count(f'"{key}"'.encode()) > 1 and _is_given_twice(line, key):
        return Reason.DUPLICATE_KEY
    if value is None:
        return Reason.EMPTY_TEXT
    return value if isinstance(value, str) else Reason.NOT_TEXT


def _is_given_twice(line: str, key: str) -> bool:
    """True if the outermost object names a key twice; json.loads silently uses the last one."""
    keys: list[list[str]] = []
    json.loads(line, object_pairs_hook=lambda pairs: keys.append([name for name, _ in pairs]))
    return keys[-1].count(key) > 1


def _csv_rows(piece: Piece, kind: FileKind) -> Iterator[tuple[int, bytes, _Read | None]]:
    columns = list(kind.columns)
    wanted = _csv_columns(kind)
    is_header_next = piece.is_first and kind.has_header
    for record in csv_records(piece.data, kind.dialect, first_line=piece.first_line):
        if is_header_next and record.fields != [b""]:
            is_header_next = False
            continue
        if record.fields is None:
            yield record.line, record.raw, Reason.OPEN_QUOTE
        elif record.fields == [b""]:
            yield record.line, record.raw, None
        elif len(record.fields) != len(columns):
            yield record.line, record.raw, Reason.WRONG_FIELD_COUNT
        elif kind.has_header and record.fields[0].strip() == columns[0].encode() and _is_header(record.fields, kind):
            yield record.line, record.raw, Reason.REPEATED_HEADER
        elif kind.text_column == "alpaca":
            cells = {name: _decoded(record.fields[index], kind) for name, index in wanted.items()}
            undecodable = any(isinstance(cell, Reason) for cell in cells.values())
            yield record.line, record.raw, Reason.UNDECODABLE if undecodable else alpaca_turns_of(cells)
        else:
            (index,) = wanted.values()
            yield record.line, record.raw, _decoded(record.fields[index], kind)


def _csv_columns(kind: FileKind) -> dict[str, int]:
    if kind.text_column == "alpaca":
        return {name: kind.columns.index(name) for name in ("instruction", "input", "output") if name in kind.columns}
    # A column may have an empty name.
    return {"text": kind.columns.index("text" if kind.text_column is None else kind.text_column)}


def _is_header(fields: list[bytes], kind: FileKind) -> bool:
    return [_decoded(cell.strip(), kind) for cell in fields] == list(kind.columns)
