"""Atomic file writes (a file exists complete or not at all), whole lines, and hashes of files."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.files.disk_room import room_named
from data_pipeline.files.own_files import fresh, no_link


def hash_file(path: Path) -> str:
    """BLAKE2b hash (128 bits) of a file's bytes, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically and durably (fsync), also when several processes write it at once.

    Raises:
        NoRoomError: The disk is full; the file is as before.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _in_place_of(path, partial, len(data)):
        with open(partial, "wb", opener=fresh) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file atomically, without fsync.

    Raises:
        NoRoomError: The disk is full; the file is as before.
    """
    # Runs several times per trial; pathlib objects would cost more time than the write.
    partial = f"{path.parent}/.{path.name}.{os.getpid()}"
    with _in_place_of(path, partial, len(text)):
        with open(partial, "w", encoding="utf-8", opener=fresh) as file:
            file.write(text)
        os.replace(partial, path)


@contextmanager
def _in_place_of(path: Path, partial: Path | str, num_bytes: int) -> Iterator[None]:
    """Remove the partial file if the block fails."""
    try:
        with room_named(path, num_bytes):
            yield
    except OSError:
        with suppress(OSError):
            os.unlink(partial)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file: all of it, or nothing where the disk is full.

    A line that an ended process left unfinished is closed first, so that it spoils no other.

    Raises:
        NoRoomError: The disk is full; the file is as before.
        PlantedFileError: As `no_link`.
    """
    data = line.encode() + b"\n"
    with room_named(path, len(data)), open(path, "a+b", buffering=0, opener=no_link) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            data = data if file.read(1) == b"\n" else b"\n" + data
        try:
            if file.write(data) != len(data):
                # The rest finds no room: the system has said so by taking a part.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise
