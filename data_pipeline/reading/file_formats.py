"""Detect compression, encoding, format, columns and line ends of a file by its content, never by its name."""

import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Literal

from data_pipeline.formats.decompression import (
    Compression,
    ExpandsTooFarError,
    compression_of,
    decompress,
    most_plain_bytes,
)
from data_pipeline.formats.encodings import (
    WIDE_ENCODINGS,
    Encoding,
    HighByteSample,
    configured_encoding,
    detect_encoding,
)
from data_pipeline.formats.json_arrays import array_elements
from data_pipeline.formats.parquet_files import ExtensionTypeError, open_parquet
from data_pipeline.formats.parquet_rows import pages_refused
from data_pipeline.reading.corpus_files import FoundFile, open_bytes, open_seekable
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError
from data_pipeline.schema.redaction import redact

Format = Literal["jsonl", "json", "csv", "txt", "parquet"]

TEXT_NAMES = ("text", "content", "text_a", "sentence", "document", "body", "article", "story", "passage", "payload")
TURN_NAMES = ("conversations", "messages", "conversation", "dialog")
ALPACA_NAMES = ("instruction", "output")

_HEAD_BYTES = 1 << 18
_PIECE_BYTES = 1 << 20
_DELIMITERS = (",", "\t", ";")
_SNIFFED_ROWS = 60
# Possessive quantifiers: with backtracking, white space without an end would take quadratic time.
_OBJECT_OVER_LINES = re.compile(r'\s*+\{[^\S\n]*+\n\s*+"[^"\n]*+"\s*+:')
_HEADER_CELL = re.compile(r"[^\W\d][\w .:/()#%-]{0,63}|")


@dataclass(frozen=True, slots=True)
class FileKind:
    """Detected properties of a file, all that is needed to read its rows."""

    path: str
    num_file_bytes: int
    num_plain_bytes: int
    """Size after decompression."""
    blake2b: str
    compression: Compression | None
    encoding: Encoding
    format: Format
    has_cr_lines: bool = False
    """Lines end with a lone CR."""
    delimiter: str = ","
    columns: tuple[str, ...] = ()
    """Header of a CSV; keys seen in JSON; columns of Parquet."""
    has_header: bool = True
    text_column: str | None = None
    """Column or key of the text. None: a row is the text itself (plain text, an array of strings)."""
    kept_columns: tuple[str, ...] = ()
    """Columns to read besides the text; only Parquet, a columnar format, uses this."""
    refused: str | None = None
    """Reason why no row can be read; None if the file is readable."""
    damage: str | None = None
    """Position and error of a failed decompression; rows before it are read."""

    @property
    def has_dialogues(self) -> bool:
        """True if the rows are conversations."""
        return self.text_column in ("conversations", "alpaca")

    @property
    def format_in_words(self) -> str:
        """Name of the format; tables with their delimiter."""
        return {",": "csv", "\t": "tsv", ";": "csv with ;"}[self.delimiter] if self.format == "csv" else self.format


def examine_file(found: FoundFile, corpus: CorpusConfig) -> FileKind:
    """Read a file once and detect its properties. Memory use does not grow with the file.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    sample = HighByteSample()
    head = b""
    num_plain_bytes = 0
    damage: str | None = None
    refused: str | None = None
    with open_bytes(found.path) as raw:
        hashing = _HashingReader(raw, digest)
        compression = compression_of(hashing.peek(4))
        most_bytes = most_plain_bytes(found.num_bytes, corpus.expands_to)
        plain = decompress(hashing, compression, most_bytes=most_bytes)
        try:
            while piece := plain.read(_PIECE_BYTES):
                num_plain_bytes += len(piece)
                if len(head) < _HEAD_BYTES:
                    head += piece[: _HEAD_BYTES - len(head)]
                sample.add(piece)
        except (OSError, EOFError) as cause:
            damage = f"{compression} stream ends in error after {num_plain_bytes:,} bytes: {redact(str(cause))}"
        except ExpandsTooFarError as cause:
            refused = str(cause)
        while hashing.read(_PIECE_BYTES):
            pass
    common: dict[str, Any] = {
        "path": found.path,
        "num_file_bytes": hashing.num_bytes,
        "num_plain_bytes": num_plain_bytes,
        "blake2b": digest.hexdigest(),
        "compression": compression,
        "damage": damage,
    }
    if refused is not None:
        return FileKind(encoding=Encoding("utf-8", "not read"), format="txt", refused=refused, **common)
    if head.startswith(b"PAR1"):
        common |= _parquet_facts(found.path, compression, num_plain_bytes, corpus)
        return FileKind(encoding=Encoding("utf-8", "Parquet"), format="parquet", **common)
    if corpus.encoding is not None:
        encoding = configured_encoding(corpus.encoding, head)
    else:
        encoding = detect_encoding(head, sample.finish())
    if encoding.name not in WIDE_ENCODINGS and head.count(0) > 0.1 * len(head):
        refused = "it is neither text nor Parquet: over a tenth of its first bytes are NUL; give text or Parquet"
        return FileKind(encoding=encoding, format="txt", refused=refused, **common)
    text = head[encoding.bom_bytes :].decode(encoding.name, "replace")
    common |= _text_facts(text, corpus, is_whole=num_plain_bytes <= _HEAD_BYTES)
    return FileKind(encoding=encoding, **common)


class _HashingReader:
    """A stream that hashes its bytes while they are read, so that one pass over the file is enough."""

    def __init__(self, raw: IO[bytes], digest: Any) -> None:
        self._raw = raw
        self._digest = digest
        self._peeked = b""
        self.num_bytes = 0

    def peek(self, size: int) -> bytes:
        self._peeked = self._raw.read(size)
        self._count(self._peeked)
        return self._peeked

    def read(self, size: int = -1, /) -> bytes:
        if self._peeked:
            cut = len(self._peeked) if size < 0 else size
            piece, self._peeked = self._peeked[:cut], self._peeked[cut:]
            return piece
        piece = self._raw.read(size)
        self._count(piece)
        return piece

    def _count(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.num_bytes += len(piece)


def _text_facts(head: str, corpus: CorpusConfig, *, is_whole: bool) -> dict[str, Any]:
    has_cr_lines = "\n" not in head and "\r" in head
    lines = head.split("\r") if has_cr_lines else [line.rstrip("\r") for line in head.split("\n")]
    if not is_whole and len(lines) > 1:
        lines.pop()  # The last line may be incomplete.
    facts: dict[str, Any] = {"has_cr_lines": has_cr_lines}
    wanted = corpus.format
    if wanted in ("json", "auto") and corpus.text is None and _is_array_of_strings(head):
        return facts | {"format": "json"}
    if wanted == "json" or (wanted == "auto" and _is_json_array(head)):
        return facts | {"format": "json"} | _object_facts(_first_elements(head), corpus)
    filled = [line for line in lines if line.strip()][:_SNIFFED_ROWS]
    objects = [parsed for parsed in map(_object_or_none, filled) if parsed is not None]
    if wanted == "jsonl" or (wanted == "auto" and filled and _looks_like_jsonl(filled, len(objects))):
        return facts | {"format": "jsonl"} | _object_facts(objects, corpus)
    if wanted == "auto" and _OBJECT_OVER_LINES.match(head):
        refused = "it is JSON of objects over several lines; write one object per line (JSONL), or one array of objects"
        return facts | {"format": "json", "refused": refused}
    if wanted in ("csv", "tsv") or wanted == "auto":
        table = _csv_facts(lines, corpus)
        if table is not None:
            return facts | table
    return facts | {"format": "txt"}


def _is_json_array(head: str) -> bool:
    stripped = head.lstrip()
    if not stripped.startswith("["):
        return False
    inside = stripped[1:].lstrip()
    return inside.startswith("{") and re.match(r'\{\s*("|\})', inside) is not None


def _is_array_of_strings(head: str) -> bool:
    """True if the array begins with a complete string followed by a comma or the end of the array."""
    start = re.match(r'\s*\[\s*(?=")', head)
    if start is None:
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(head, start.end())
    except ValueError:
        return False
    return re.match(r"\s*[,\]]", head[end:]) is not None


def _first_elements(head: str) -> list[dict[str, Any]]:
    """The first complete objects of an array."""
    elements = array_elements(iter([head]), longest=len(head))
    objects = (parsed for element in elements if (parsed := _object_or_none(element.text)) is not None)
    return list(islice(objects, _SNIFFED_ROWS))


def _object_facts(objects: list[dict[str, Any]], corpus: CorpusConfig) -> dict[str, Any]:
    keys = tuple(dict.fromkeys(key for row in objects for key in row))
    column, refused = choose_column(keys, corpus.text, [key for key in keys if _is_text(objects, key)])
    return {"columns": keys, "text_column": column, "refused": refused}


def _looks_like_jsonl(filled: list[str], num_objects: int) -> bool:
    # Half is enough: malformed lines in the other half become rejects.
    return 2 * num_objects >= len(filled) or (filled[0].lstrip().startswith('{"') and num_objects > 0)


def _object_or_none(line: str) -> dict[str, Any] | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _is_text(objects: list[dict[str, Any]], key: str) -> bool:
    values = [row[key] for row in objects if row.get(key) is not None]
    return bool(values) and all(isinstance(value, str) for value in values)


def choose_column(columns: tuple[str, ...], wanted: str | None, text_like: list[str]) -> tuple[str | None, str | None]:
    """The column that holds the text.

    Args:
        columns: All columns or keys of the file.
        wanted: corpus.text; None chooses by name.
        text_like: Columns whose values look like text.

    Returns:
        (column, None), or (None, the reason to refuse the file). `conversations` and `alpaca` stand for dialogues.
    """
    if wanted is not None:
        if wanted in columns:
            return wanted, None
        if any(name in columns for name in TURN_NAMES) or set(ALPACA_NAMES) <= set(columns):
            return None, f"it holds conversations and no column {wanted!r}; for objective: sft remove corpus.text"
        return None, f"it has no column {wanted!r}; its columns are {', '.join(columns) or 'none'}"
    for name in (*TEXT_NAMES[:1], *TURN_NAMES):
        if name in columns:
            return ("conversations" if name in TURN_NAMES else name), None
    if all(name in columns for name in ALPACA_NAMES):
        return "alpaca", None
    lowered = {column.strip().lower(): column for column in reversed(columns)}
    for name in TEXT_NAMES:
        if name in lowered:
            return lowered[name], None
    if len(text_like) == 1:
        return text_like[0], None
    return None, f"the column of the text is ambiguous; set corpus.text to one of {', '.join(columns) or 'none'}"


def _csv_facts(lines: list[str], corpus: CorpusConfig) -> dict[str, Any] | None:
    said = {"tsv": ("\t",)}.get(corpus.format, _DELIMITERS)
    candidates = [found for delimiter in said if (found := _table(lines, delimiter, corpus)) is not None]
    if not candidates:
        if corpus.format == "auto":
            return None
        candidates = [_table_as_said(lines, said[0], corpus)]
    return max(candidates, key=lambda facts: (facts["text_column"] is not None, len(facts["columns"])))


def _table(lines: list[str], delimiter: str, corpus: CorpusConfig) -> dict[str, Any] | None:
    """Properties of the table with this delimiter; None if the lines are no such table."""
    rows = _sniffed_rows(lines, delimiter)
    if len(rows) < 2:
        return None
    header = rows[0]
    same = sum(len(row) == len(header) for row in rows) / len(rows)
    is_header = all(_HEADER_CELL.fullmatch(cell.strip()) for cell in header) and len(set(header)) == len(header)
    names = {cell.strip().lower() for cell in header}
    knows_text = bool(names & {*TEXT_NAMES, corpus.text} or names.issuperset(ALPACA_NAMES))
    if len(header) == 1:
        return _table_as_said(lines, delimiter, corpus) if knows_text else None
    if is_header and knows_text and same >= 0.5:
        return _table_as_said(lines, delimiter, corpus)
    # Prose has commas too, but not the same number of them on every line.
    if same >= 0.9 and len(rows) >= 3:
        return _table_as_said(lines, delimiter, corpus) | {"has_header": is_header}
    return None


def _table_as_said(lines: list[str], delimiter: str, corpus: CorpusConfig) -> dict[str, Any]:
    rows = _sniffed_rows(lines, delimiter)
    columns = tuple(cell.strip() for cell in rows[0]) if rows else ()
    text_like = [
        name for index, name in enumerate(columns) if any(_is_prose(row[index : index + 1]) for row in rows[1:])
    ]
    column, refused = choose_column(columns, corpus.text, text_like)
    return {
        "format": "csv",
        "delimiter": delimiter,
        "columns": columns,
        "text_column": column,
        "refused": refused,
    }


def _sniffed_rows(lines: list[str], delimiter: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if row:
                rows.append(row)
            if len(rows) == _SNIFFED_ROWS:
                break
    except csv.Error:  # A field exceeds the reader's limit; the rows before it are enough.
        pass
    return rows


def _is_prose(cells: list[str]) -> bool:
    return any(" " in cell.strip() for cell in cells)


def _parquet_facts(
    path: str, compression: Compression | None, num_plain_bytes: int, corpus: CorpusConfig
) -> dict[str, Any]:
    import pyarrow as pa

    try:
        with open_seekable(path, compression, num_plain_bytes=num_plain_bytes) as stream:
            schema = open_parquet(stream).schema_arrow
            columns = tuple(schema.names)
            text_like = [field.name for field in schema if _is_string(field.type)]
            column, refused = choose_column(columns, corpus.text, text_like)
            if refused is None:
                wanted = (column,) if column in columns else columns
                refused = pages_refused(stream, wanted, longest_row=corpus.longest_row_bytes)
    except ExtensionTypeError as cause:
        return {"refused": str(cause)}
    except CorpusError:
        raise  # There is no room to unpack it.
    except (OSError, EOFError, ValueError, pa.ArrowException) as cause:
        return {"refused": f"it begins like Parquet, but cannot be read: {cause}; download or write it again"}
    return {"columns": columns, "text_column": column, "refused": refused}


def _is_string(column: Any) -> bool:
    import pyarrow as pa

    values = column.value_type if pa.types.is_dictionary(column) else column
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(values) for is_kind in kinds)
