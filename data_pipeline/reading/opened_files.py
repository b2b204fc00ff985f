"""Files of a corpus opened, those inside of archives too."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from data_pipeline.formats.archives import Member
from data_pipeline.formats.decompression import Compression, decompress
from data_pipeline.reading.archive_members import open_member
from data_pipeline.reading.corpus_files import check_room_unpacked, open_bytes


class Located(Protocol):
    """A file with its place."""

    @property
    def path(self) -> str:
        """Path or URL."""

    @property
    def inside(self) -> Member | None:
        """The archive that holds it."""


class Examined(Located, Protocol):
    """A file with its compression."""

    @property
    def compression(self) -> Compression | None:
        """Found by its first bytes."""

    @property
    def num_plain_bytes(self) -> int:
        """Size after decompression, as counted before."""


@contextmanager
def opened_file(file: Located) -> Iterator[IO[bytes]]:
    """The bytes of a file as stored, without decompression.

    Raises:
        OSError: The file cannot be opened.
    """
    with open_bytes(file.path) if file.inside is None else open_member(file.inside) as stream:
        yield stream


@contextmanager
def open_seekable(file: Examined) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file, seekable (for Parquet). Compressed files are unpacked to a temporary file.

    A file that holds more than was counted is refused.

    Raises:
        CorpusError: The temporary folder has no room for the unpacked file.
    """
    with opened_file(file) as raw:
        if file.compression is None and (file.inside is None or file.inside.kind == "tar"):
            yield raw
            return
        check_room_unpacked(file.path, file.num_plain_bytes)
        with tempfile.TemporaryFile() as plain:
            shutil.copyfileobj(decompress(raw, file.compression, most_bytes=file.num_plain_bytes), plain)
            plain.seek(0)
            yield plain
