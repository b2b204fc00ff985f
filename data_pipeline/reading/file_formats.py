"""Detect compression, encoding, format, columns and line ends of a file, by its content and then by its name."""

import codecs
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from data_pipeline.formats.archives import ArchiveKind, Member, archive_of
from data_pipeline.formats.arrow_rows import arrow_schema, batches_refused, columns_refused, is_arrow
from data_pipeline.formats.batch_rows import is_text_like
from data_pipeline.formats.csv_records import Dialect
from data_pipeline.formats.decompression import (
    MAGIC_BYTES,
    ByteReader,
    Compression,
    ExpandsTooFarError,
    compression_of,
    decompress,
    most_plain_bytes,
)
from data_pipeline.formats.encodings import (
    WIDE_ENCODINGS,
    LineSample,
    configured_encoding,
    detect_encoding,
)
from data_pipeline.formats.foreign_formats import (
    HEAD_BYTES,
    LINK_AS_TEXT,
    NESTED,
    NESTED_ARCHIVE,
    Foreign,
    foreign_format,
    is_html,
)
from data_pipeline.formats.legacy_encodings import Encoding
from data_pipeline.formats.parquet_files import ExtensionTypeError, open_parquet
from data_pipeline.formats.parquet_rows import pages_refused
from data_pipeline.reading.corpus_files import FoundFile
from data_pipeline.reading.opened_files import open_seekable, opened_file
from data_pipeline.reading.text_columns import choose_column, is_named_like_text
from data_pipeline.reading.text_detection import first_with_column, named_format, text_facts
from data_pipeline.schema.corpus_config import CorpusConfig, CorpusError
from data_pipeline.schema.redaction import redact

Format = Literal["jsonl", "json", "csv", "txt", "parquet", "arrow"]

_HEAD_BYTES = 1 << 18
_LONGEST_HEAD_BYTES = 1 << 22
_LINES_OF_A_HEAD = 3
_PIECE_BYTES = 1 << 20
_LONGEST_LINK_BYTES = 1 << 12
_TEXT_KEY = re.compile(rb'"text"\s*:')
_END_OF_OBJECT = re.compile(rb"\}\s{0,64}[,{\]]")
_QUOTED_CELL = re.compile(rb'(?:[^"\n]{0,256}[,;|\t])?"')
_END_OF_CELL = re.compile(rb'"\s{0,64}[,;|\t\r\n]')
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_MOST_CONTROL = 0.02
_TABLE_ENCODINGS: dict[Format, Encoding] = {
    "parquet": Encoding("utf-8", "Parquet"),
    "arrow": Encoding("utf-8", "Arrow"),
}


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
    quote: str = '"'
    escape: str = ""
    columns: tuple[str, ...] = ()
    """Header of a CSV; keys seen in JSON; columns of Parquet."""
    has_header: bool = True
    text_column: str | None = None
    """Column or key of the text. None: a row is the text itself (plain text, an array of strings)."""
    kept_columns: tuple[str, ...] = ()
    """Columns to read besides the text; only Parquet, a columnar format, uses this."""
    refused: str | None = None
    """Reason why no row can be read; None if the file is readable."""
    holds_no_text: bool = False
    """A refused file without which nothing is lost, such as a picture."""
    inside: Member | None = None
    """The archive that holds the file; None for a file of its own."""
    archive: ArchiveKind | None = None
    """The file is an archive, whose members are read instead."""
    damage: str | None = None
    """Position and error of a failed decompression; rows before it are read."""

    @property
    def has_dialogues(self) -> bool:
        """True if the rows are conversations."""
        return self.text_column in ("conversations", "alpaca")

    @property
    def format_in_words(self) -> str:
        """Name of the format; tables with their delimiter."""
        if self.format != "csv":
            return self.format
        delimiter = self.delimiter if self.delimiter.isprintable() else repr(self.delimiter)[1:-1]
        name = {",": "csv", "\t": "tsv"}.get(self.delimiter, f"csv with {delimiter}")
        quote = "" if self.quote == '"' else f", quote {self.quote}" if self.quote else ", no quote"
        return name + quote + (f", escape {self.escape}" if self.escape else "")

    @property
    def dialect(self) -> Dialect:
        """The characters of a table."""
        return Dialect(self.delimiter, self.quote, self.escape)


def examine_file(found: FoundFile, corpus: CorpusConfig) -> FileKind:
    """Read a file once and detect its properties. Memory use does not grow with the file.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    look = _FirstLook(wants_text_key=corpus.text is None)
    damage: str | None = None
    refused: str | None = None
    compression: Compression | None = None
    with opened_file(found) as raw:
        hashing = _HashingReader(raw, digest)
        try:
            compression = compression_of(hashing.peek(MAGIC_BYTES))
            most_bytes = most_plain_bytes(found.num_bytes, corpus.expands_to)
            plain = decompress(hashing, compression, most_bytes=most_bytes)
            while piece := plain.read(_PIECE_BYTES):
                look.add(piece)
            while hashing.read(_PIECE_BYTES):
                pass
        except (OSError, EOFError) as cause:
            # An error with a number is one of the store, not of the file.
            if getattr(cause, "errno", None) is not None or (compression is None and found.inside is None):
                raise
            damage = (
                f"{compression or 'archive'} stream ends in error after {look.num_bytes:,} bytes: {redact(str(cause))}"
            )
            hashing.read_rest()
        except ExpandsTooFarError as cause:
            refused = str(cause)
            hashing.read_rest()
    kind = FileKind(
        path=found.path,
        num_file_bytes=hashing.num_bytes,
        num_plain_bytes=look.num_bytes,
        blake2b=digest.hexdigest(),
        compression=compression,
        encoding=Encoding("utf-8", "not read"),
        format="txt",
        refused=refused,
        damage=damage,
        inside=found.inside,
    )
    if refused is not None:
        return kind
    return _without_rows(kind, look.head) or _with_rows(kind, look, found, corpus)


def _without_rows(kind: FileKind, head: bytes) -> FileKind | None:
    """The kind of a file that has no rows of its own: an archive, or a format that is not read; None for others."""
    archive = archive_of(head[:HEAD_BYTES])
    if archive is not None and kind.inside is None and (archive == "tar" or kind.compression is None):
        return replace(kind, archive=archive)
    foreign: Foreign | None = NESTED_ARCHIVE
    if archive is None:
        is_nested = kind.compression is not None and compression_of(head) is not None
        foreign = NESTED if is_nested else foreign_format(head[:HEAD_BYTES])
    if foreign is None and _is_link_as_text(kind, head):
        foreign = LINK_AS_TEXT
    if foreign is None:
        return None
    return replace(kind, refused=foreign.in_words, holds_no_text=not foreign.may_hold_text, damage=None)


def _with_rows(kind: FileKind, look: "_FirstLook", found: FoundFile, corpus: CorpusConfig) -> FileKind:
    head = look.head
    if head.startswith(b"PAR1"):
        facts = _parquet_facts(kind, corpus)
        return replace(kind, format="parquet", encoding=_TABLE_ENCODINGS["parquet"], **facts)
    if is_arrow(head):
        return replace(kind, format="arrow", encoding=_TABLE_ENCODINGS["arrow"], **_arrow_facts(kind, found, corpus))
    if corpus.encoding is not None:
        encoding = configured_encoding(corpus.encoding, head)
    else:
        encoding = detect_encoding(head, look.lines.finish())
    kind = replace(kind, encoding=encoding)
    is_binary = encoding.name not in WIDE_ENCODINGS and (
        head.count(0) > 0.1 * len(head)
        or (encoding.is_guess and len(_CONTROL.findall(head)) > _MOST_CONTROL * len(head))
    )
    if is_binary:
        refused = "it is neither text nor Parquet: many of its first bytes are NUL or control characters"
        return replace(kind, refused=f"{refused}; give text or Parquet")
    if encoding.refused is not None:
        return replace(kind, refused=encoding.refused)
    named = named_format(found.path) if corpus.format == "auto" else None
    if corpus.format != "txt" and is_html(head) and (named or corpus.text is not None or corpus.format != "auto"):
        refused = "it is a page of HTML where data should be, perhaps the error page of a download; download it again"
        return replace(kind, refused=f"{refused}, or set corpus.format: txt")
    text = head[encoding.bom_bytes :].decode(encoding.name, "replace")
    facts = text_facts(text, corpus, named, is_whole=kind.num_plain_bytes <= len(head))
    kind = replace(kind, **facts)
    return _with_late_column(kind, look, found, corpus)


def _with_late_column(kind: FileKind, look: "_FirstLook", found: FoundFile, corpus: CorpusConfig) -> FileKind:
    """A JSON file with the column that only later rows have, where the first ones leave it open."""
    if kind.format not in ("jsonl", "json"):
        return kind
    is_open = kind.refused is not None or (
        look.has_text_key and kind.text_column is not None and not is_named_like_text(kind.text_column)
    )
    if not is_open:
        return kind
    with opened_file(found) as raw:
        plain = decompress(raw, kind.compression, most_bytes=most_plain_bytes(found.num_bytes, corpus.expands_to))
        try:
            late = first_with_column(_characters(plain, kind.encoding), corpus)
        except (OSError, EOFError):
            if kind.damage is None:
                raise
            return kind
    return kind if late is None else replace(kind, **late)


def _characters(plain: ByteReader, encoding: Encoding) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding.name)("replace")
    skip = encoding.bom_bytes
    while piece := plain.read(_PIECE_BYTES):
        yield decoder.decode(piece[skip:])
        skip = max(0, skip - len(piece))


def _is_link_as_text(kind: FileKind, head: bytes) -> bool:
    """True for a file whose only content is the path of another file beside it."""
    if kind.inside is not None or "://" in kind.path or not 0 < len(head) <= _LONGEST_LINK_BYTES or b"\n" in head:
        return False
    target = os.path.join(os.path.dirname(kind.path), os.fsdecode(head))
    return b"\0" not in head and b" " not in head and target != kind.path and os.path.exists(target)


class _FirstLook:
    """The beginning of a file, and a sample of its lines, gathered while it is read."""

    def __init__(self, *, wants_text_key: bool) -> None:
        self.head = b""
        self.lines = LineSample()
        self.num_bytes = 0
        self.has_text_key = False
        self._wants_text_key = wants_text_key
        self._limit = _HEAD_BYTES
        self._last = b""

    def add(self, piece: bytes) -> None:
        """Take the next bytes."""
        self.num_bytes += len(piece)
        while piece and len(self.head) < self._limit:
            taken = piece[: self._limit - len(self.head)]
            self.head += taken
            self._take(taken)
            piece = piece[len(taken) :]
            if len(self.head) == self._limit and not _has_whole_rows(self.head):
                self._limit = min(4 * self._limit, _LONGEST_HEAD_BYTES)
        if piece:
            self._take(piece)

    def _take(self, piece: bytes) -> None:
        self.lines.add(piece)
        if self._wants_text_key and not self.has_text_key:
            self.has_text_key = _TEXT_KEY.search(self._last + piece) is not None
            self._last = piece[-16:]


def _has_whole_rows(head: bytes) -> bool:
    """True if the beginning of a file shows whole rows: a row of JSON, or some lines without a cell that stays open."""
    begin = head.lstrip()[:1]
    if begin == b"[":
        return _END_OF_OBJECT.search(head) is not None or head.count(b"\n") >= _LINES_OF_A_HEAD
    if begin == b"{":
        return b"\n" in head or b"\r" in head or _END_OF_OBJECT.search(head) is not None
    if head.count(b"\n") < _LINES_OF_A_HEAD:
        return b"\n" not in head and head.count(b"\r") >= _LINES_OF_A_HEAD
    start = _QUOTED_CELL.match(head, head.index(b"\n") + 1)
    return start is None or _END_OF_CELL.search(head, start.end()) is not None


class _HashingReader:
    """A stream that hashes its bytes while they are read, so that one pass over the file is enough."""

    def __init__(self, raw: ByteReader, digest: Any) -> None:
        self._raw = raw
        self._digest = digest
        self._peeked = b""
        self.num_bytes = 0

    def peek(self, size: int) -> bytes:
        while len(self._peeked) < size and (piece := self._raw.read(size - len(self._peeked))):
            self._peeked += piece
        self._count(self._peeked)
        return self._peeked

    def read_rest(self) -> None:
        """Hash the rest, as far as it can be read."""
        try:
            while self.read(_PIECE_BYTES):
                pass
        except (OSError, EOFError) as cause:
            if getattr(cause, "errno", None) is not None:
                raise

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


def _parquet_facts(kind: FileKind, corpus: CorpusConfig) -> dict[str, Any]:
    import pyarrow as pa

    try:
        with open_seekable(kind) as stream:
            schema = open_parquet(stream).schema_arrow
            columns = tuple(schema.names)
            text_like = [field.name for field in schema if is_text_like(field.type)]
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


def _arrow_facts(kind: FileKind, found: FoundFile, corpus: CorpusConfig) -> dict[str, Any]:
    import pyarrow as pa

    longest_row = corpus.longest_row_bytes
    most_bytes = most_plain_bytes(found.num_bytes, corpus.expands_to)
    try:
        with opened_file(found) as raw:
            schema = arrow_schema(decompress(raw, kind.compression, most_bytes=most_bytes))
        columns = tuple(schema.names)
        text_like = [field.name for field in schema if is_text_like(field.type)]
        column, refused = choose_column(columns, corpus.text, text_like)
        if refused is None:
            wanted = (column,) if column in columns else columns
            refused = columns_refused(schema, [name for name in wanted if name is not None])
        if refused is None:
            with opened_file(found) as raw:
                plain = decompress(raw, kind.compression, most_bytes=most_bytes)
                refused = batches_refused(plain, longest_row=longest_row)
    except ExtensionTypeError as cause:
        return {"refused": str(cause)}
    except (OSError, EOFError, ValueError, pa.ArrowException) as cause:
        return {"refused": f"it begins like Arrow, but cannot be read: {cause}; download or write it again"}
    return {"columns": columns, "text_column": column, "refused": refused}
