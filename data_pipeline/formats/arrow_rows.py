"""Rows of Arrow files and streams (Feather, saved Hugging Face data sets) in bounded memory.

The messages of a stream are looked at before Arrow reads them: a schema with an extension type, a batch that expands
too far, and a second schema are refused. An Arrow file holds a stream between its magic and its footer, so one way
reads both.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from data_pipeline.files.arrow_extensions import inert_schema
from data_pipeline.formats.batch_rows import is_text_like, rows_of
from data_pipeline.formats.decompression import ByteReader
from data_pipeline.formats.flat_tables import FlatTable
from data_pipeline.formats.parquet_files import extension_types_refused
from data_pipeline.schema.corpus_config import CorpusError
from data_pipeline.schema.rejects import Reason
from data_pipeline.schema.settings import format_bytes

_FILE = b"ARROW1"
_CONTINUED = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_LONGEST_HEADER_BYTES = 64 << 20
_BATCH_BYTES = 256 << 20
_READ_BYTES = 1 << 20
_DEEPEST_TYPE = 16


def is_arrow(head: bytes) -> bool:
    """True for an Arrow file or stream.

    Args:
        head: Its first bytes, at least 64 unless it is shorter.
    """
    if head.startswith(_FILE):
        return True
    # The first message of a stream is its schema.
    num_bytes = int.from_bytes(head[4:8], "little")
    if not head.startswith(_CONTINUED) or not 16 <= num_bytes <= _LONGEST_HEADER_BYTES:
        return False
    try:
        return FlatTable.root(head[8:]).number(1, "<B") == _SCHEMA
    except ValueError:
        return False


def arrow_schema(stream: ByteReader) -> pa.Schema:
    """The schema of an Arrow file or stream, read from its beginning.

    Raises:
        ExtensionTypeError: A column, or a part of one, is of an extension type.
        ValueError, OSError, EOFError, pa.ArrowException: The file is damaged.
    """
    _, encapsulated = _Messages(stream, longest_row=0).schema()
    return inert_schema(encapsulated)


def batches_refused(stream: ByteReader, *, longest_row: int) -> str | None:
    """Reason why an Arrow file or stream cannot be read in bounded memory; None if it can or if it is damaged."""
    messages = _Messages(stream, longest_row=longest_row)
    try:
        while messages.next():
            pass
    except CorpusError as fault:
        return str(fault)
    except (ValueError, OSError, EOFError, pa.ArrowException):
        return None
    return None


def columns_refused(schema: pa.Schema, columns: Sequence[str]) -> str | None:
    """Reason why columns of an Arrow schema cannot be read; None if they can."""
    for name in columns:
        if not _is_plain(schema.field(name).type, 0):
            return (
                f"its column {name!r} is of the type {schema.field(name).type}, which is not read; write it as strings"
            )
    return None


def arrow_rows(stream: ByteReader, columns: Sequence[str], *, longest_row: int) -> Iterator[dict[str, Any] | Reason]:
    """Every row as plain values, or the reason for rejecting it.

    Args:
        stream: The file from its beginning.
        columns: Columns to read.
        longest_row: Bytes of text in a row beyond which it is too long.

    Raises:
        CorpusError: `batches_refused` gives a reason.
        ValueError, OSError, EOFError, pa.ArrowException: The file is damaged, behind the rows that came.
    """
    messages = _Messages(stream, longest_row=longest_row)
    with pa.ipc.open_stream(pa.PythonFile(_AsFile(messages), mode="r")) as reader:
        for batch in reader:
            chosen = batch.select(list(columns))
            for column in chosen.columns:
                # Offsets of a stranger may lead anywhere. That a string is UTF-8 is judged row by row.
                is_string = column.type in (pa.string(), pa.large_string())
                kind = pa.binary() if column.type == pa.string() else pa.large_binary()
                (column.view(kind) if is_string else column).validate(full=True)
            yield from rows_of(chosen, longest_row=longest_row)
    messages.finish()


def _is_plain(kind: Any, depth: int) -> bool:
    types = pa.types
    if depth > _DEEPEST_TYPE:
        return False
    if types.is_dictionary(kind):
        return _is_plain(kind.value_type, depth + 1)
    if is_text_like(kind):
        return True
    is_nested = types.is_struct(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind)
    if is_nested or types.is_fixed_size_list(kind):
        return all(_is_plain(kind.field(number).type, depth + 1) for number in range(kind.num_fields))
    plain = (types.is_primitive, types.is_null, types.is_decimal, types.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in plain)


class _Messages:
    """The messages of a stream one by one, each judged before it is given."""

    def __init__(self, stream: ByteReader, *, longest_row: int) -> None:
        self._stream = stream
        self._most_bytes = longest_row + _BATCH_BYTES
        self._is_file: bool | None = None
        self._has_schema = False
        self._is_ended = False

    def schema(self) -> tuple[FlatTable, bytes]:
        """The header and the bytes of the first message, judged."""
        header, encapsulated = self._header()
        if header is None or header.number(1, "<B") != _SCHEMA:
            raise pa.ArrowInvalid("it does not begin with a schema")
        extension_types_refused(inert_schema(encapsulated))
        self._has_schema = True
        return header, encapsulated

    def next(self) -> bytes:
        """The next message with its body; b"" at the end."""
        if self._is_ended:
            return b""
        if not self._has_schema:
            header, encapsulated = self.schema()
            return encapsulated + self._read(header.number(3, "<q"))
        table, encapsulated = self._header()
        if table is None:
            self._is_ended = True
            return b""
        kind, num_bytes = table.number(1, "<B"), table.number(3, "<q")
        if kind not in (_DICTIONARY, _BATCH):
            raise pa.ArrowInvalid("it holds a message that is neither a batch nor a dictionary")
        if num_bytes > self._most_bytes:
            raise CorpusError(self._too_large(num_bytes))
        body = self._read(num_bytes)
        content = table.table(2)
        batch = content.table(1) if content is not None and kind == _DICTIONARY else content
        if batch is None:
            raise pa.ArrowInvalid("it holds a batch without a header")
        if batch.table(3) is not None:
            num_plain_bytes = _plain_bytes(batch, body)
            if num_plain_bytes > self._most_bytes:
                raise CorpusError(self._too_large(num_plain_bytes))
        return encapsulated + body

    def finish(self) -> None:
        """Read to the end.

        Raises:
            EOFError: The file is truncated between two batches.
        """
        while self.next():
            pass

    def _too_large(self, num_bytes: int) -> str:
        return (
            f"one of its batches holds {format_bytes(num_bytes)}, and {format_bytes(self._most_bytes)} are read at "
            "once; write the file again with smaller batches, or raise corpus.longest_row"
        )

    def _header(self) -> tuple[FlatTable | None, bytes]:
        """The header of the next message and the bytes that hold it; None at the end."""
        if self._is_file is None:
            start = self._read(8)
            self._is_file = start.startswith(_FILE)
            start = self._read(8) if self._is_file else start
        else:
            start = self._read(8, may_end=not self._is_file)
        if not start:
            return None, b""
        if not start.startswith(_CONTINUED):
            raise pa.ArrowInvalid("it is damaged, or was written by an Arrow before version 0.15")
        num_bytes = int.from_bytes(start[4:], "little", signed=True)
        if num_bytes == 0:
            return None, b""
        if not 8 <= num_bytes <= _LONGEST_HEADER_BYTES:
            raise pa.ArrowInvalid("the length of a message is damaged")
        header = self._read(num_bytes)
        return FlatTable.root(header), start + header

    def _read(self, size: int, *, may_end: bool = False) -> bytes:
        """Exactly `size` bytes, in pieces: a damaged length takes no memory."""
        if size < 0:
            raise pa.ArrowInvalid("the length of a message is damaged")
        parts, missing = [], size
        while missing:
            piece = self._stream.read(min(missing, _READ_BYTES))
            if not piece:
                if may_end and missing == size:
                    return b""
                raise EOFError("the Arrow data ends in the middle of a batch")
            parts.append(piece)
            missing -= len(piece)
        return b"".join(parts)


def _plain_bytes(batch: FlatTable, body: bytes) -> int:
    """Bytes of the buffers of a compressed batch after decompression."""
    total = 0
    for offset, length in batch.pairs(2):
        if length < 0 or offset < 0 or offset + length > len(body):
            raise pa.ArrowInvalid("a buffer of a batch leads out of it")
        size = int.from_bytes(body[offset : offset + 8], "little", signed=True) if length >= 8 else 0
        # -1 stands for a buffer that is not compressed.
        if size < -1:
            raise pa.ArrowInvalid("the length of a buffer is damaged")
        total += length if size == -1 else size
    return total


class _AsFile(io.RawIOBase):
    """The messages as the stream that Arrow reads."""

    def __init__(self, messages: _Messages) -> None:
        self._messages = messages
        self._given = memoryview(b"")
        self.fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if not self._given:
            self._given = memoryview(self._messages.next())
        piece = bytes(self._given if size < 0 else self._given[:size])
        self._given = self._given[len(piece) :]
        return piece
