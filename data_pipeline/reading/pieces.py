"""Cut files into pieces that can be read independently: a piece holds whole rows and the number of its first line.

Cutting searches for line ends only and is far cheaper than reading rows, so one task cuts a file while all others read
its pieces.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal

import pyarrow as pa

from data_pipeline.files.machine_faults import machine_fault
from data_pipeline.formats.arrow_rows import arrow_rows
from data_pipeline.formats.csv_records import end_of_last_record
from data_pipeline.formats.decompression import decompress, most_plain_bytes
from data_pipeline.formats.encodings import WIDE_ENCODINGS
from data_pipeline.formats.json_arrays import array_elements
from data_pipeline.formats.parquet_files import ExtensionTypeError
from data_pipeline.formats.parquet_rows import parquet_rows
from data_pipeline.reading.file_formats import FileKind
from data_pipeline.reading.opened_files import open_seekable, opened_file
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError
from data_pipeline.schema.rejects import Reason
from data_pipeline.schema.user_errors import first_line

_READ_BYTES = 1 << 20
_LONGEST_ROW_END_BYTES = 1 << 10
_SHOWN_BYTES = 400
_LINE_END = re.compile(rb"\n")
_BLANK_LINE = re.compile(rb"\n[ \t\r]*+\n")


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive whole rows of one file, decompressed, in an encoding whose line end is one byte."""

    file: int
    first_line: int
    data: bytes
    is_first: bool = False
    lines: list[int] | None = None
    """JSON arrays and Parquet: the line of each row; `data` then holds the rows as JSON lines."""
    reject: Reason | None = None
    """The piece is one rejected row, and `data` is its beginning."""


def pieces_of(kind: FileKind, corpus: CorpusConfig, *, file: int, piece_bytes: int) -> Iterator[Piece]:
    """The pieces of a file, about `piece_bytes` each; none of a refused file.

    Args:
        file: Number of the file in the corpus.

    Raises:
        CorpusError: The file has changed since it was examined.
    """
    if kind.refused is not None:
        return
    try:
        yield from _pieces(kind, corpus, file=file, piece_bytes=piece_bytes)
    except (OSError, EOFError) as cause:
        if machine_fault(cause) is not None:
            raise
        raise CorpusError(
            f"{kind.path} could be read a moment before, and now it cannot: {cause}; leave the files of the corpus as "
            "they are while it is read, and run the same command again"
        ) from cause


def _pieces(kind: FileKind, corpus: CorpusConfig, *, file: int, piece_bytes: int) -> Iterator[Piece]:
    if kind.format in ("parquet", "arrow"):
        yield from _table_pieces(kind, corpus, file=file, piece_bytes=piece_bytes)
    elif kind.format == "json":
        yield from _json_pieces(kind, corpus, file=file, piece_bytes=piece_bytes)
    else:
        yield from _line_pieces(kind, corpus, file=file, piece_bytes=piece_bytes)


def row_encoding(kind: FileKind) -> str:
    """Encoding of the pieces of a file: wide encodings become UTF-8."""
    return "utf-8" if kind.encoding.name in WIDE_ENCODINGS else kind.encoding.name


def _line_pieces(kind: FileKind, corpus: CorpusConfig, *, file: int, piece_bytes: int) -> Iterator[Piece]:
    unit = _unit_of(kind, corpus)
    row_end = _BLANK_LINE if unit == "paragraph" else _LINE_END
    buffer = bytearray()
    line, is_first, is_skipping = 1, True, False
    # The buffer holds no line end before `searched`; a cut is tried again when it holds `try_at` bytes. Without the two
    # a long row would be searched again with every read.
    searched, try_at = 0, piece_bytes
    for read in _plain_text(kind, corpus):
        buffer += read
        if is_skipping:
            end = row_end.search(buffer) if unit != "file" else None
            # The end of the row may be only partly in the buffer.
            num_dropped = end.end() if end else max(0, len(buffer) - _LONGEST_ROW_END_BYTES)
            line, is_skipping = line + buffer.count(b"\n", 0, num_dropped), end is None
            del end  # A match keeps the buffer from being shortened.
            del buffer[:num_dropped]
            searched = 0
        if is_skipping or len(buffer) < try_at:
            continue
        cut = _cut(buffer, searched, unit, kind)
        if cut:
            with memoryview(buffer) as view:
                data = bytes(view[:cut])
            del buffer[:cut]
            yield Piece(file, line, data, is_first)
            line, is_first = line + data.count(b"\n"), False
            searched = 0
        last_line_end = buffer.rfind(b"\n", searched)
        searched = len(buffer) if last_line_end < 0 else last_line_end
        has_no_end = last_line_end < 0 or unit in ("paragraph", "file")
        if not cut and has_no_end and len(buffer) > corpus.longest_row_bytes:
            yield Piece(file, line, bytes(buffer[:_SHOWN_BYTES]), is_first, reject=Reason.TOO_LONG)
            is_first, is_skipping = False, True
        if unit == "record":
            # A quote is searched for its end from its beginning, so search again in a buffer of twice the size.
            longest = corpus.longest_row_bytes
            try_at = max(piece_bytes, 2 * len(buffer) if len(buffer) > longest else min(2 * len(buffer), longest + 1))
    if kind.damage is not None:
        # The damage truncates the last line; it is a reject of its own.
        del buffer[buffer.rfind(b"\n") + 1 :]
    if buffer and not is_skipping:
        yield Piece(file, line, bytes(buffer), is_first)


def _unit_of(kind: FileKind, corpus: CorpusConfig) -> Literal["line", "record", "paragraph", "file"]:
    """Unit of a text file that is one row."""
    if kind.format == "csv":
        return "record"
    if kind.format == "txt" and corpus.documents == "paragraphs":
        return "paragraph"
    return "file" if kind.format == "txt" and corpus.documents == "files" else "line"


def _cut(buffer: bytearray, searched: int, unit: str, kind: FileKind) -> int:
    """Position behind the last row that is certainly complete; 0 if there is none.

    Args:
        searched: No row ends at a line end before this position.
    """
    if unit == "record":
        return end_of_last_record(buffer, kind.dialect)
    if unit == "paragraph":
        return max((blank.end() for blank in _BLANK_LINE.finditer(buffer, searched)), default=0)
    return buffer.rfind(b"\n", searched) + 1 if unit == "line" else 0


def _plain_text(kind: FileKind, corpus: CorpusConfig) -> Iterator[bytes]:
    """Text of a file: decompressed, without byte order mark, wide encodings as UTF-8, lone CR line ends as LF."""
    decoder = _wide_decoder(kind.encoding.name) if kind.encoding.name in WIDE_ENCODINGS else None
    skip = kind.encoding.bom_bytes
    num_bytes = 0
    with opened_file(kind) as raw:
        most_bytes = most_plain_bytes(kind.num_file_bytes, corpus.expands_to)
        plain = decompress(raw, kind.compression, most_bytes=most_bytes)
        try:
            while piece := plain.read(_READ_BYTES):
                num_bytes += len(piece)
                if num_bytes > kind.num_plain_bytes and kind.damage is None:
                    raise CorpusError(_changed(kind, kind.num_plain_bytes, num_bytes))
                piece, skip = piece[skip:], max(0, skip - len(piece))
                if decoder is not None:
                    piece = decoder.decode(piece).encode("utf-8", "surrogatepass")
                yield piece.replace(b"\r", b"\n") if kind.has_cr_lines else piece
            if decoder is not None:
                yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
        except (OSError, EOFError):
            if kind.damage is None:
                raise
    if num_bytes < kind.num_plain_bytes and kind.damage is None:
        raise CorpusError(_changed(kind, kind.num_plain_bytes, num_bytes))


def _changed(kind: FileKind, before: int, now: int) -> str:
    return (
        f"{kind.path} has changed while it was read: it had {before:,} bytes, and now {now:,} or more; stop the "
        "program that writes it and run the same command again"
    )


def _wide_decoder(encoding: str) -> codecs.IncrementalDecoder:
    """Decoder of UTF-16 or UTF-32 that turns invalid units into lone surrogates.

    A lone surrogate is invalid UTF-8, so exactly its row is rejected later.
    """
    unit = 2 if encoding.startswith("utf-16") else 4

    def as_surrogate(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        return "\ud800", min(error.start + unit, len(error.object))

    codecs.register_error("pretune.as_surrogate", as_surrogate)
    return codecs.getincrementaldecoder(encoding)("pretune.as_surrogate")


def _json_pieces(kind: FileKind, corpus: CorpusConfig, *, file: int, piece_bytes: int) -> Iterator[Piece]:
    """Elements of a JSON array as JSON lines."""
    encoding = row_encoding(kind)
    gathered = _Gathered(file, piece_bytes)
    chunks = codecs.iterdecode(_plain_text(kind, corpus), encoding, "surrogateescape")
    for element in array_elements(chunks, longest=corpus.longest_row_bytes):
        row = element.text.replace("\r", " ").replace("\n", " ").encode(encoding, "surrogateescape")
        yield from gathered.reject(element.line, row) if element.is_too_long else gathered.add(element.line, row)
    yield from gathered.rest()


class _Gathered:
    """Gathers rows with their lines into pieces."""

    def __init__(self, file: int, piece_bytes: int) -> None:
        self._file, self._piece_bytes = file, piece_bytes
        self._rows: list[bytes] = []
        self._lines: list[int] = []
        self._size, self._is_first = 0, True

    def add(self, line: int, row: bytes) -> Iterator[Piece]:
        """Add a row; gives a piece when enough is gathered."""
        self._rows.append(row)
        self._lines.append(line)
        self._size += len(row)
        if self._size >= self._piece_bytes:
            yield from self.rest()

    def reject(self, line: int, beginning: bytes, reason: Reason = Reason.TOO_LONG) -> Iterator[Piece]:
        """Gives what is gathered, and the beginning of a rejected row as a piece of its own."""
        yield from self.rest()
        yield Piece(self._file, line, beginning[:_SHOWN_BYTES], self._is_first, reject=reason)
        self._is_first = False

    def rest(self) -> Iterator[Piece]:
        """Gives what is gathered, if anything is."""
        if self._rows:
            yield Piece(self._file, self._lines[0], b"\n".join(self._rows), self._is_first, self._lines)
            self._rows, self._lines, self._size, self._is_first = [], [], 0, False


def _table_pieces(kind: FileKind, corpus: CorpusConfig, *, file: int, piece_bytes: int) -> Iterator[Piece]:
    """Rows of Parquet and Arrow as JSON lines."""
    text = kind.columns if kind.has_dialogues else (kind.text_column or "",)
    columns = list(dict.fromkeys((*text, *kind.kept_columns)))
    gathered = _Gathered(file, piece_bytes)
    number = 0
    try:
        with _table_rows(kind, columns, corpus) as rows:
            for number, row in enumerate(rows, start=1):
                reason = row if isinstance(row, Reason) else _why_no_text(row, kind)
                if isinstance(row, Reason) or reason is not None:
                    yield from gathered.reject(number, b"", reason or Reason.NOT_TEXT)
                else:
                    # Only columns beside the text hold values that are none of JSON, such as dates.
                    yield from gathered.add(number, json.dumps(row, ensure_ascii=True, default=str).encode())
    except ExtensionTypeError as cause:
        raise CorpusError(f"{kind.path}: {cause}") from cause
    except CorpusError:
        raise
    except (ValueError, OSError, EOFError, pa.ArrowException) as cause:
        if getattr(cause, "errno", None) is not None:
            raise  # Of the store, not of the file: Arrow's own errors have no number.
        yield from gathered.reject(number + 1, first_line(cause).encode(), Reason.FILE_DAMAGED)
    yield from gathered.rest()


@contextmanager
def _table_rows(
    kind: FileKind, columns: Sequence[str], corpus: CorpusConfig
) -> Iterator[Iterator[dict[str, Any] | Reason]]:
    longest_row = corpus.longest_row_bytes
    if kind.format == "parquet":
        with open_seekable(kind) as stream:
            _check_size(stream, kind.num_plain_bytes, kind)
            yield parquet_rows(stream, columns, longest_row=longest_row)
    else:
        with opened_file(kind) as raw:
            if kind.inside is None:
                _check_size(raw, kind.num_file_bytes, kind)
            most_bytes = most_plain_bytes(kind.num_file_bytes, corpus.expands_to)
            plain = decompress(raw, kind.compression, most_bytes=most_bytes)
            yield arrow_rows(plain, columns, longest_row=longest_row)


def _check_size(stream: IO[bytes], num_bytes: int, kind: FileKind) -> None:
    if not stream.seekable():
        return
    found = stream.seek(0, 2)
    stream.seek(0)
    if found != num_bytes:
        raise CorpusError(_changed(kind, num_bytes, found))


def _why_no_text(row: dict[str, Any], kind: FileKind) -> Reason | None:
    """Reason for rejecting a row whose text is a date or another value that JSON does not have."""
    text = row.get(kind.text_column or "")
    return None if text is None or isinstance(text, str | int | float | list | dict) else Reason.NOT_TEXT


def describe(piece: Piece) -> dict[str, Any]:
    """A piece without its bytes, as JSON-compatible values; `rebuild` is the inverse."""
    return {
        "file": piece.file,
        "first_line": piece.first_line,
        "num_bytes": len(piece.data),
        "is_first": piece.is_first,
        "lines": piece.lines,
        "reject": piece.reject,
    }


def rebuild(description: dict[str, Any], data: bytes) -> Piece:
    """The piece of a description (from `describe`) and its bytes."""
    reject = description["reject"]
    return Piece(
        file=description["file"],
        first_line=description["first_line"],
        data=data,
        is_first=description["is_first"],
        lines=description["lines"],
        reject=Reason(reject) if reject else None,
    )
