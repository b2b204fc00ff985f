"""Members of archives opened as files of a corpus."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import IO, Any

from data_pipeline.formats.archives import DamagedArchiveError, Member, SeekableView, open_entry
from data_pipeline.formats.decompression import ByteReader, Compression, decompress
from data_pipeline.reading.corpus_files import check_room_unpacked, open_bytes

_COPIED_BYTES = 1 << 20


@contextmanager
def open_archive(path: str, compression: Compression | None, *, num_plain_bytes: int) -> Iterator[IO[bytes]]:
    """The bytes of an archive, seekable.

    A compressed one is unpacked into a temporary file, once for all members that are read in turn.
    """
    if compression is None:
        with open_bytes(path) as stream:
            yield stream
        return
    with _UNPACKED.lock:
        file = _UNPACKED.file_of(path, compression, num_plain_bytes)
        # Readers in other threads have positions of their own.
        stream = io.BufferedReader(_PositionedReader(file))
    yield stream


@contextmanager
def open_member(member: Member) -> Iterator[IO[bytes]]:
    """The bytes of a member.

    Raises:
        OSError: It is damaged, or the archive cannot be read.
    """
    with open_archive(member.archive, member.compression, num_plain_bytes=member.num_archive_bytes) as stream:
        yield open_entry(stream, member.kind, member.entry)


class _Unpacked:
    """The archive that was unpacked last."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._key: tuple[Any, ...] = ()
        self._file: Any = None

    def file_of(self, path: str, compression: Compression, num_plain_bytes: int) -> Any:
        key = (path, compression, num_plain_bytes)
        if key != self._key:
            check_room_unpacked(path, num_plain_bytes)
            file = tempfile.TemporaryFile()  # noqa: SIM115  # Kept for the next member.
            # Of a damaged one, what comes before the damage: its members are then found to be fewer.
            with suppress(EOFError, DamagedArchiveError), open_bytes(path) as raw:
                _copy(decompress(raw, compression, most_bytes=num_plain_bytes), file)
            file.flush()
            self._key, self._file = key, file
        return self._file


_UNPACKED = _Unpacked()


def _copy(plain: ByteReader, file: Any) -> None:
    try:
        while piece := plain.read(_COPIED_BYTES):
            file.write(piece)
    except OSError as cause:
        # An error with a number is one of the store or the disk.
        if cause.errno is not None:
            raise
        raise DamagedArchiveError(str(cause)) from cause


class _PositionedReader(SeekableView):
    """A reader of an open file with a position of its own."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file

    def _num_bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def readinto(self, buffer: Any, /) -> int:
        piece = os.pread(self._file.fileno(), len(buffer), self._position)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
