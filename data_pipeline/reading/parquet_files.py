"""Parquet files opened for reading. A file with a column of an Arrow extension type is refused before it is opened."""

import base64
import binascii
import functools
from collections.abc import Callable
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.schema.arrow_extensions import extension_types, inert_schema
from data_pipeline.schema.corpus_config import CorpusError

_MAGIC = b"PAR1"
_TAIL_BYTES = 4 + len(_MAGIC)
"""Length of the footer, and the magic bytes."""
_ARROW_SCHEMA = b"ARROW:schema"
"""Key in the footer of the Arrow schema that the writer had, extension types included."""
_SHOWN = 5


class ExtensionTypeError(CorpusError):
    """A Parquet file has a column of an Arrow extension type."""


def open_parquet(stream: IO[bytes]) -> pq.ParquetFile:
    """The Parquet file in a seekable stream, without columns of extension types.

    Raises:
        ExtensionTypeError: A column, or a part of one, is of an extension type.
        OSError, pa.ArrowInvalid: The file is damaged or encrypted.
    """
    footer = _footer(stream)
    metadata = _rebuild()(pa.py_buffer(footer))
    _refuse_extension_types(_arrow_schema(footer, metadata))
    stream.seek(0)
    # Parquet has types of its own that Arrow would turn into extension types (JSON, UUID): they stay text and bytes.
    file = pq.ParquetFile(stream, metadata=metadata, arrow_extensions_enabled=False)
    _refuse_extension_types(file.schema_arrow)
    return file


def _refuse_extension_types(schema: pa.Schema) -> None:
    found = extension_types(schema)
    if found:
        shown = ", ".join(found[:_SHOWN]) + (", .." if len(found) > _SHOWN else "")
        raise ExtensionTypeError(
            f"it has {len(found)} Arrow extension types: {shown}; reading one can run code of the file's author, so no "
            "column of the file is read; write the file again with plain columns (numbers, strings, lists, structs)"
        )


def _footer(stream: IO[bytes]) -> bytes:
    end = stream.seek(0, 2)
    stream.seek(max(0, end - _TAIL_BYTES))
    tail = stream.read(_TAIL_BYTES)
    num_bytes = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or num_bytes > end - _TAIL_BYTES:
        raise pa.ArrowInvalid("it does not end like Parquet; it is truncated, or its footer is encrypted")
    stream.seek(end - _TAIL_BYTES - num_bytes)
    return stream.read(num_bytes)


def _arrow_schema(footer: bytes, metadata: pq.FileMetaData) -> pa.Schema:
    """The Arrow schema in a footer; an empty one if the writer did not know Arrow."""
    # Of two schemas under one key, Arrow might read the other one.
    if footer.count(_ARROW_SCHEMA) > 1:
        raise pa.ArrowInvalid("its footer has two Arrow schemas")
    written = (metadata.metadata or {}).get(_ARROW_SCHEMA)
    if written is None:
        return pa.schema([])
    try:
        return inert_schema(base64.b64decode(written, validate=True))
    except binascii.Error as cause:
        raise pa.ArrowInvalid(f"the Arrow schema in its footer is not base64: {cause}") from cause


@functools.cache
def _rebuild() -> Callable[[pa.Buffer], Any]:
    """A function from the bytes of a footer to its metadata, without a reader, which would make the extension types.

    It is the one that copies of metadata are unpickled with; Arrow gives it no name of its own.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({}), sink)
    rebuild, _ = pq.read_metadata(pa.BufferReader(sink.getvalue())).__reduce__()
    return rebuild  # type: ignore[no-any-return]
