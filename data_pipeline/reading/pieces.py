"""Cut files into pieces that can be read independently: a piece holds whole rows and the number of its first line.

Cutting searches for line ends only and is far cheaper than reading rows, so one task cuts a file while all others read
its pieces.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from data_pipeline.reading.corpus_files import decompress, open_bytes, open_seekable
from data_pipeline.reading.csv_records import end_of_last_record
from data_pipeline.reading.encodings import WIDE_ENCODINGS
from data_pipeline.reading.file_formats import FileKind
from data_pipeline.reading.parquet_files import ExtensionTypeError, open_parquet
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError
from data_pipeline.schema.rejects import Reason

_READ_BYTES = 1 << 20
_LONGEST_ROW_BYTES = 64 << 20
_LONGEST_ROW_END_BYTES = 1 << 10
_LINE_END = re.compile(rb"\n")
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
_SEPARATORS = re.compile(r"[\s,]*")
_NEXT_OBJECT = re.compile(r"\}[\s,]*(?=\{)")
_LONGEST_JSON_ATOM = 16
"""No literal, sign or escape is longer, so a parse error further from the end is not caused by truncation."""
_DECODER = json.JSONDecoder()


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
        OSError, EOFError: The file cannot be read, although it could when it was examined.
        CorpusError: The file has an Arrow extension type, although it had none when it was examined.
    """
    if kind.refused is not None:
        return
    if kind.format == "parquet":
        yield from _parquet_pieces(kind, file=file, piece_bytes=piece_bytes)
    elif kind.format == "json":
        yield from _json_pieces(kind, file=file, piece_bytes=piece_bytes)
    else:
        yield from _line_pieces(kind, corpus, file=file, piece_bytes=piece_bytes)


def row_encoding(kind: FileKind) -> str:
    """Encoding of the pieces of a file: wide encodings become UTF-8."""
    return "utf-8" if kind.encoding.name in WIDE_ENCODINGS else kind.encoding.name


def _line_pieces(kind: FileKind, corpus: CorpusConfig, *, file: int, piece_bytes: int) -> Iterator[Piece]:
    is_whole_file = kind.format == "txt" and corpus.documents == "files"
    buffer = bytearray()
    line, is_first, is_skipping = 1, True, False
    is_by_paragraph = kind.format == "txt" and corpus.documents == "paragraphs"
    row_end = _BLANK_LINE if is_by_paragraph else _LINE_END
    for read in _plain_text(kind):
        buffer += read
        if is_skipping:
            end = row_end.search(buffer)
            # The end of the row may be only partly in the buffer.
            num_dropped = end.end() if end else max(0, len(buffer) - _LONGEST_ROW_END_BYTES)
            line, is_skipping = line + buffer.count(b"\n", 0, num_dropped), end is None
            del buffer[:num_dropped]
        if is_skipping or len(buffer) < piece_bytes or is_whole_file:
            continue
        cut = _cut(bytes(buffer), kind, corpus)
        if cut:
            data = bytes(buffer[:cut])
            del buffer[:cut]
            yield Piece(file, line, data, is_first)
            line, is_first = line + data.count(b"\n"), False
        elif len(buffer) > _LONGEST_ROW_BYTES and (is_by_paragraph or b"\n" not in buffer):
            yield Piece(file, line, bytes(buffer[:400]), is_first, reject=Reason.TOO_LONG)
            is_first, is_skipping = False, True
    if kind.damage is not None:
        # The damage truncates the last line; it is a reject of its own.
        del buffer[bytes(buffer).rfind(b"\n") + 1 :]
    if buffer and not is_skipping:
        yield Piece(file, line, bytes(buffer), is_first)


def _cut(buffer: bytes, kind: FileKind, corpus: CorpusConfig) -> int:
    """Position behind the last row that is certainly complete."""
    if kind.format == "csv":
        return end_of_last_record(buffer, kind.delimiter)
    if kind.format == "txt" and corpus.documents == "paragraphs":
        return max((blank.end() for blank in _BLANK_LINE.finditer(buffer)), default=0)
    return buffer.rfind(b"\n") + 1


def _plain_text(kind: FileKind) -> Iterator[bytes]:
    """Text of a file: decompressed, without byte order mark, wide encodings as UTF-8, lone CR line ends as LF."""
    decoder = _wide_decoder(kind.encoding.name) if kind.encoding.name in WIDE_ENCODINGS else None
    skip = kind.encoding.bom_bytes
    with open_bytes(kind.path) as raw:
        plain = decompress(raw, kind.compression)
        try:
            while piece := plain.read(_READ_BYTES):
                piece, skip = piece[skip:], max(0, skip - len(piece))
                if decoder is not None:
                    piece = decoder.decode(piece).encode("utf-8", "surrogatepass")
                yield piece.replace(b"\r", b"\n") if kind.has_cr_lines else piece
            if decoder is not None:
                yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
        except (OSError, EOFError):
            if kind.damage is None:
                raise


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


def _json_pieces(kind: FileKind, *, file: int, piece_bytes: int) -> Iterator[Piece]:
    """Elements of a JSON array as JSON lines."""
    encoding = row_encoding(kind)
    rows: list[bytes] = []
    lines: list[int] = []
    size, is_first = 0, True
    for line, element in _array_elements(codecs.iterdecode(_plain_text(kind), encoding, "surrogateescape")):
        row = element.replace("\r", " ").replace("\n", " ").encode(encoding, "surrogateescape")
        rows.append(row)
        lines.append(line)
        size += len(row)
        if size >= piece_bytes:
            yield Piece(file, lines[0], b"\n".join(rows), is_first, lines)
            rows, lines, size, is_first = [], [], 0, False
    if rows:
        yield Piece(file, lines[0], b"\n".join(rows), is_first, lines)


def _array_elements(chunks: Iterator[str]) -> Iterator[tuple[int, str]]:
    """(line, text) of each element; memory holds only the element being read.

    Malformed text up to the next object counts as one element.
    """
    text = next(chunks, "")
    position = text.find("[") + 1
    line, counted, is_whole = 1, 0, False
    while True:
        position = _SEPARATORS.match(text, position).end()  # type: ignore[union-attr]  # matches nothing, too
        end = _end_of_element(text, position, is_whole=is_whole)
        if end is None:
            more = _read_characters(chunks, len(text) - position)
            line += text.count("\n", counted, position)
            text, position, counted, is_whole = text[position:] + more, 0, 0, not more
            continue
        if end == position:
            return
        line, counted = line + text.count("\n", counted, position), position
        yield line, text[position:end]
        position = end


def _end_of_element(text: str, start: int, *, is_whole: bool) -> int | None:
    """End of the element at `start`; `start` itself at the end of the array, None if more text is needed."""
    if start < len(text) and text[start] == "]":
        return start
    must_be_whole = is_whole or len(text) - start > _LONGEST_ROW_BYTES
    try:
        _, end = _DECODER.raw_decode(text, start)
        # A number may continue behind the end of the buffer.
        return end if end < len(text) - _LONGEST_JSON_ATOM or must_be_whole else None
    except RecursionError:
        pass
    except json.JSONDecodeError as error:
        is_cut_off = error.pos >= len(text) - _LONGEST_JSON_ATOM or error.msg.startswith("Unterminated string")
        if is_cut_off and not must_be_whole:
            return None
    following = _NEXT_OBJECT.search(text, start + 1)
    if following is None:
        return len(text) if must_be_whole else None
    return following.end()


def _read_characters(chunks: Iterator[str], at_least: int) -> str:
    """More text, at least as much as the buffer holds: doubling bounds how often a long element is parsed again."""
    parts: list[str] = []
    size = 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > at_least:
            break
    return "".join(parts)


def _parquet_pieces(kind: FileKind, *, file: int, piece_bytes: int) -> Iterator[Piece]:
    columns = list(kind.columns) if kind.has_dialogues else list(dict.fromkeys((kind.text_column, *kind.kept_columns)))
    num_rows = 1
    with open_seekable(kind.path, kind.compression) as stream:
        try:
            parquet = open_parquet(stream)
        except ExtensionTypeError as cause:
            raise CorpusError(f"{kind.path}: {cause}") from cause
        for batch in parquet.iter_batches(batch_size=1024, columns=columns):
            rows = [json.dumps(row, ensure_ascii=True, default=str).encode() for row in batch.to_pylist()]
            for start, stop in pairwise(_cuts([len(row) for row in rows], piece_bytes)):
                lines = list(range(num_rows + start, num_rows + stop))
                yield Piece(file, lines[0], b"\n".join(rows[start:stop]), num_rows == 1, lines)
            num_rows += len(rows)


def _cuts(sizes: list[int], most: int) -> list[int]:
    """Indices at which to cut so that each part is about `most` in size."""
    cuts, size = [0], 0
    for index, add in enumerate(sizes, start=1):
        size += add
        if size >= most or index == len(sizes):
            cuts.append(index)
            size = 0
    return cuts


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
