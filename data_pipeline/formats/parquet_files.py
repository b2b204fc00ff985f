"""Parquet files opened for reading. A file with a column of an Arrow extension type is refused before it is opened."""

import base64
import binascii
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.files.arrow_extensions import extension_types, inert_schema
from data_pipeline.schema.corpus_config import CorpusError

_MAGIC = b"PAR1"
_TAIL_BYTES = 4 + len(_MAGIC)
"""Length of the footer, and the magic bytes."""
_ARROW_SCHEMA = b"ARROW:schema"
"""Key in the footer of the Arrow schema that the writer had, extension types included."""
_OTHER_KEY = b"ARROW-schema"
"""As long as the key, so that the footer stays well-formed."""
_SHOWN = 5


class ExtensionTypeError(CorpusError):
    """A Parquet or Arrow file has a column of an Arrow extension type."""


def open_parquet(stream: IO[bytes], **how: Any) -> pq.ParquetFile:
    """The Parquet file in a seekable stream, without columns of extension types.

    Args:
        how: Further arguments of `pq.ParquetFile`.

    Raises:
        ExtensionTypeError: A column, or a part of one, is of an extension type.
        OSError, pa.ArrowInvalid: The file is damaged or encrypted.
    """
    footer = _footer(stream)
    extension_types_refused(_arrow_schema(footer))
    # Read from the same bytes, so that a file that changes meanwhile gets nothing past the refusal.
    metadata = _metadata(footer)
    stream.seek(0)
    # Parquet has types of its own that Arrow would turn into extension types (JSON, UUID): they stay text and bytes.
    file = pq.ParquetFile(stream, metadata=metadata, arrow_extensions_enabled=False, **how)
    extension_types_refused(file.schema_arrow)
    return file


def extension_types_refused(schema: pa.Schema) -> None:
    """Refuse a schema with extension types.

    Raises:
        ExtensionTypeError: It has some; the message names them.
    """
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


def _metadata(footer: bytes) -> pq.FileMetaData:
    # A footer alone is a file whose metadata can be read: no column that it names is looked at.
    return pq.read_metadata(pa.BufferReader(_MAGIC + footer + len(footer).to_bytes(4, "little") + _MAGIC))


def _arrow_schema(footer: bytes) -> pa.Schema:
    """The Arrow schema in a footer, with storage types for extension types; an empty one without an Arrow schema."""
    # Of two schemas under one key, Arrow might read the other one.
    if footer.count(_ARROW_SCHEMA) > 1:
        raise pa.ArrowInvalid("its footer has two Arrow schemas")
    # Under its own key, Arrow would make the extension types of it at once.
    written = (_metadata(footer.replace(_ARROW_SCHEMA, _OTHER_KEY)).metadata or {}).get(_OTHER_KEY)
    if written is None:
        return pa.schema([])
    try:
        return inert_schema(base64.b64decode(written, validate=True))
    except binascii.Error as cause:
        raise pa.ArrowInvalid(f"the Arrow schema in its footer is not base64: {cause}") from cause
