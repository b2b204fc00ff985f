"""One bounded stream for all compressed files: no read gives more than asked for, no file more than its limit."""

import bz2
import io
import lzma
import zlib
from contextlib import suppress
from typing import Any, Literal, Protocol

import pyarrow as pa
import zstandard

from data_pipeline.schema.corpus_config import CorpusError
from data_pipeline.schema.settings import format_bytes

Compression = Literal["gzip", "zstd", "bzip2", "xz", "lz4"]

_MAGIC: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}
MAGIC_BYTES = max(map(len, _MAGIC))
"""Bytes of a file that tell its compression."""

_ZSTD_WINDOW_BYTES = 1 << 27
"""Largest window of a zstd frame, which the reader keeps in memory; `zstd --long` without a number asks for it."""
_PIECE_BYTES: dict[Compression, int] = {"gzip": 1 << 14, "zstd": 1 << 8, "bzip2": 1 << 10, "xz": 1 << 10}
"""Compressed bytes decompressed at once. gzip makes at most 16 MiB of them; a block of zstd of 4 bytes may hold
128 KiB, so these are 8 MiB at most."""
_MOST_AT_ONCE = 1 << 20
"""Bytes that bzip2 and xz give at once."""
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_PADDED: tuple[Compression, ...] = ("gzip", "xz")
"""Zeros may lie between and behind their streams."""
_XZ_MEMORY_BYTES = 160 << 20
"""Most memory of an xz stream; `xz -9` asks for 65 MiB."""
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
    if compression is not None:
        return _Bounded(_Lz4(stream) if compression == "lz4" else _Framed(stream, compression), most_bytes)
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


class _Framed:
    """A stream of frames or members, all of them, up to where it is damaged.

    It raises if the stream is truncated, where some libraries' own readers end silently, and gives all data before a
    damaged part, which the standard library's readers discard.
    """

    def __init__(self, stream: Any, compression: Compression) -> None:
        self._stream = stream
        self._name = compression
        self._piece_bytes = _PIECE_BYTES[compression]
        self._frame: Any = None
        self._compressed = b""
        self._position = 0
        self._plain = bytearray()
        self._damage: Exception | None = None

    def read(self, size: int = -1, /) -> bytes:
        size = 1 << 18 if size < 0 else size
        while len(self._plain) < size and self._damage is None and self._has_more():
            self._decompress_next()
        if not self._plain and self._damage is not None:
            raise self._damage
        with memoryview(self._plain) as view:
            piece = bytes(view[:size])
        del self._plain[:size]
        return piece

    def _has_more(self) -> bool:
        if self._frame is not None and not getattr(self._frame, "needs_input", True):
            return True
        if self._position >= len(self._compressed):
            self._compressed, self._position = self._stream.read(1 << 17), 0
        if not self._compressed and self._frame is not None:
            self._damage = EOFError(f"the file is truncated in the middle of {self._name} data")
        return bool(self._compressed)

    def _decompress_next(self) -> None:
        needs_input = self._frame is None or getattr(self._frame, "needs_input", True)
        piece = self._compressed[self._position : self._position + self._piece_bytes] if needs_input else b""
        self._position += len(piece)
        if self._frame is None:
            if self._name in _PADDED:
                piece = piece.lstrip(b"\0")
                if not piece:
                    return
            self._frame = _new_frame(self._name)
        try:
            if isinstance(self._frame, lzma.LZMADecompressor | bz2.BZ2Decompressor):
                self._plain += self._frame.decompress(piece, _MOST_AT_ONCE)
            elif self._name == "gzip":
                self._plain += self._inflated(piece)
            else:
                self._plain += self._frame.decompress(piece)
        except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError) as cause:
            self._damage = OSError(str(cause))
            return
        if self._frame.eof:
            # The next frame begins in this piece.
            self._position -= len(self._frame.unused_data)
            self._frame = None

    def _inflated(self, piece: bytes) -> bytes:
        before = self._frame.copy()
        try:
            plain: bytes = self._frame.decompress(piece)
            return plain
        except zlib.error as cause:
            # What comes before the damage, byte by byte.
            self._damage = OSError(str(cause))
            parts = []
            with suppress(zlib.error):
                for number in range(len(piece)):
                    parts.append(before.decompress(piece[number : number + 1]))
            return b"".join(parts)


def _new_frame(compression: Compression) -> Any:
    if compression == "gzip":
        return zlib.decompressobj(_GZIP_WINDOW)
    if compression == "bzip2":
        return bz2.BZ2Decompressor()
    if compression == "xz":
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()


class _Lz4:
    """An lz4 stream, all frames of it."""

    def __init__(self, stream: Any) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(_AsFile(stream), mode="r"), "lz4")

    def read(self, size: int = -1, /) -> bytes:
        piece: bytes = self._stream.read(1 << 18 if size < 0 else size)
        return piece


class _AsFile(io.RawIOBase):
    """A stream as Arrow wants it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        piece: bytes = self._stream.read(size)
        return piece
