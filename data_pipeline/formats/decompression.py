"""One bounded stream for all compressed files: no read gives more than asked for, no file more than its limit."""

import bz2
import gzip
from typing import Any, Literal, Protocol

import zstandard

from data_pipeline.schema.corpus_config import CorpusError
from data_pipeline.schema.settings import format_bytes

Compression = Literal["gzip", "zstd", "bzip2"]

_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}

_ZSTD_WINDOW_BYTES = 1 << 27
"""Largest window of a zstd frame, which the reader keeps in memory; `zstd --long` without a number asks for it."""
_ZSTD_PIECE_BYTES = 256
"""Compressed bytes decompressed at once. A block of 4 bytes may hold 128 KiB, so this gives 8 MiB at most."""
_ALWAYS_ALLOWED_BYTES = 64 << 30
_ALWAYS_ALLOWED_RATIO = 200


class ExpandsTooFarError(CorpusError):
    """A compressed file holds more than its limit allows."""


class ByteReader(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size` of them if it is not negative; b"" at the end."""


def compression_of(head: bytes) -> Compression | None:
    """Compression of a file, detected by its first bytes; None for plain files."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def most_plain_bytes(num_file_bytes: int, expands_to: int | None) -> int:
    """Bytes that a compressed file may hold.

    Args:
        num_file_bytes: Its size on disk.
        expands_to: corpus.expands_to. None: the larger of 64 GiB and 200 times the size on disk.
    """
    return max(_ALWAYS_ALLOWED_BYTES, _ALWAYS_ALLOWED_RATIO * num_file_bytes) if expands_to is None else expands_to


def decompress(stream: Any, compression: Compression | None, *, most_bytes: int) -> ByteReader:
    """The decompressed stream, all members or frames of it. Plain files are their own stream, without a limit.

    Its `read` raises OSError or EOFError if the stream is truncated or damaged, after the data before the damage.

    Args:
        most_bytes: Bytes that the stream may hold in all; `read` raises ExpandsTooFarError beyond them.
    """
    if compression == "gzip":
        return _Bounded(_UpToDamage(gzip.GzipFile(fileobj=stream)), most_bytes)
    if compression == "bzip2":
        return _Bounded(_UpToDamage(bz2.BZ2File(stream)), most_bytes)
    if compression == "zstd":
        return _Bounded(_Zstd(stream), most_bytes)
    plain: ByteReader = stream
    return plain


class _Bounded:
    """A stream that ends in an error where it gives more than its limit."""

    def __init__(self, stream: ByteReader, most_bytes: int) -> None:
        self._stream = stream
        self._most_bytes = most_bytes
        self._num_bytes = 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self._stream.read(size)
        self._num_bytes += len(piece)
        if self._num_bytes > self._most_bytes:
            raise ExpandsTooFarError(
                f"it expands to more than {format_bytes(self._most_bytes)}, the most that corpus.expands_to allows; "
                f"if it is meant to, set corpus.expands_to: {format_bytes(4 * self._most_bytes).replace(' ', '')}"
            )
        return piece


class _UpToDamage:
    """Delivers all data before a damaged part; `read` of the standard library would discard it."""

    def __init__(self, stream: gzip.GzipFile | bz2.BZ2File) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        return self._stream.read1(size)


class _Zstd:
    """A zstd stream, all frames of it. It raises if the stream is truncated; the library's own reader ends silently."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._frame: Any = None
        self._compressed = b""
        self._position = 0
        self._plain = bytearray()
        self._damage: Exception | None = None

    def read(self, size: int = -1, /) -> bytes:
        size = _ZSTD_PIECE_BYTES << 10 if size < 0 else size
        while len(self._plain) < size and self._damage is None and self._has_more():
            try:
                self._decompress_next()
            except zstandard.ZstdError as cause:
                self._damage = OSError(str(cause))
        if not self._plain and self._damage is not None:
            raise self._damage
        with memoryview(self._plain) as view:
            piece = bytes(view[:size])
        del self._plain[:size]
        return piece

    def _has_more(self) -> bool:
        if self._position >= len(self._compressed):
            self._compressed, self._position = self._stream.read(1 << 17), 0
        if not self._compressed and self._frame is not None:
            self._damage = EOFError("the file is truncated in the middle of a zstd frame")
        return bool(self._compressed)

    def _decompress_next(self) -> None:
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
        piece = self._compressed[self._position : self._position + _ZSTD_PIECE_BYTES]
        self._plain += self._frame.decompress(piece)
        self._position += len(piece)
        if self._frame.eof:
            # The next frame begins in this piece.
            self._position -= len(self._frame.unused_data)
            self._frame = None
