"""Members of zip and tar archives: listed, and opened as streams of bytes. Nothing is unpacked by name."""

import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Literal

from data_pipeline.formats.decompression import Compression
from data_pipeline.schema.corpus_config import CorpusError

ArchiveKind = Literal["zip", "tar"]

MOST_MEMBERS = 100_000
_LONGEST_HEADER_BYTES = 1 << 20
"""Of a tar archive. A header may name any length, and tarfile reads it at once."""
_MEMBER_BYTES = 1 << 13
_TAR_MAGIC_AT = 257


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One member of an archive."""

    name: str
    num_bytes: int
    """After decompression, as the archive says."""
    start: int
    """Tar: position of its bytes in the archive. Zip: its number in the list."""
    why_not: str | None = None
    """Reason why it cannot be read; None if it can."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member of an archive is."""

    archive: str
    kind: ArchiveKind
    compression: Compression | None
    num_archive_bytes: int
    """Size of the archive after decompression."""
    entry: ArchiveEntry


class DamagedArchiveError(OSError):
    """An archive or a member of it is damaged."""


def archive_of(head: bytes) -> ArchiveKind | None:
    """Kind of an archive by its first bytes; None if it is none.

    Args:
        head: At least 512 bytes unless the file is shorter.
    """
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    return "tar" if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar" else None


def document_in_zip(names: list[str]) -> str | None:
    """Kind of document that a zip archive with these members is, with its article; None for a plain archive."""
    found = set(names)
    for member, name in (
        ("word/document.xml", "a Word document (docx)"),
        ("xl/workbook.xml", "an Excel workbook (xlsx)"),
        ("xl/workbook.bin", "an Excel workbook (xlsb)"),
        ("ppt/presentation.xml", "a PowerPoint presentation (pptx)"),
        ("META-INF/container.xml", "an EPUB book"),
        ("META-INF/MANIFEST.MF", "a Java archive"),
        ("AndroidManifest.xml", "an Android package"),
        ("content.xml", "an OpenDocument file (odt, ods, odp)"),
    ):
        if member in found:
            return name
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in found):
        return "the weights of a model, saved by PyTorch"
    if found and all(name.endswith(".npy") for name in found):
        return "an archive of NumPy arrays (npz)"
    return None


def entries_of(stream: IO[bytes], kind: ArchiveKind) -> Iterator[ArchiveEntry]:
    """The files of an archive in its order; folders are left out.

    Args:
        stream: The archive, seekable.

    Raises:
        CorpusError: It has more than `MOST_MEMBERS` members.
        DamagedArchiveError: It is damaged.
    """
    entries = _zip_entries(stream) if kind == "zip" else _tar_entries(stream)
    for number, entry in enumerate(entries):
        if number >= MOST_MEMBERS:
            raise CorpusError(f"it has more than {MOST_MEMBERS:,} members; unpack it and name its folder")
        yield entry


def open_entry(stream: IO[bytes], kind: ArchiveKind, entry: ArchiveEntry) -> IO[bytes]:
    """The bytes of a member.

    Its `read` raises DamagedArchiveError where it is damaged, after the data before the damage.

    Args:
        stream: The archive, seekable; it must stay open.
    """
    if kind == "tar":
        return io.BufferedReader(_Section(stream, entry.start, entry.num_bytes), 1 << 18)
    try:
        archive = zipfile.ZipFile(stream)
        return _Checked(archive.open(archive.infolist()[entry.start]))  # type: ignore[return-value]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, IndexError) as cause:
        raise DamagedArchiveError(f"the archive is damaged: {cause}") from cause


def _zip_entries(stream: IO[bytes]) -> Iterator[ArchiveEntry]:
    try:
        infos = zipfile.ZipFile(stream).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, zlib.error, OSError) as cause:
        raise DamagedArchiveError(f"the archive is damaged or truncated: {cause}") from cause
    for number, info in enumerate(infos):
        if info.is_dir():
            continue
        why_not = None
        if stat.S_ISLNK(info.external_attr >> 16):
            why_not = "a link inside an archive"
        elif info.flag_bits & 1:
            why_not = "it is encrypted; unpack the archive with its password"
        elif info.compress_type not in (0, 8, 12, 14):
            why_not = f"it is compressed with method {info.compress_type} of zip, which is not read; unpack the archive"
        yield ArchiveEntry(info.filename, info.file_size, number, why_not)


def _tar_entries(stream: IO[bytes]) -> Iterator[ArchiveEntry]:
    size = stream.seek(0, 2)
    stream.seek(0)
    try:
        with tarfile.open(fileobj=_ShortReads(stream), mode="r:") as archive:
            for info in archive:
                if info.isdir():
                    continue
                why_not = None
                if info.issym() or info.islnk():
                    why_not = "a link inside an archive"
                elif not info.isreg():
                    why_not = "a pipe or a device inside an archive"
                elif info.issparse():
                    why_not = "it is stored with holes; unpack the archive"
                elif info.offset_data + info.size > size:
                    raise DamagedArchiveError(f"the archive is truncated inside {info.name}")
                yield ArchiveEntry(info.name, info.size, info.offset_data, why_not)
            end = archive.offset
    except (tarfile.TarError, ValueError, EOFError) as cause:
        raise DamagedArchiveError(f"the archive is damaged or truncated: {cause}") from cause
    # tarfile ends silently where a header is damaged; a whole archive ends with zeros.
    stream.seek(end)
    if stream.read(512).strip(b"\0"):
        raise DamagedArchiveError(f"the archive is damaged at byte {end:,}")


class _ShortReads(io.RawIOBase):
    """A stream that refuses long reads."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER_BYTES:
            raise DamagedArchiveError("a header of the archive is too long")
        return self._stream.read(size)


class SeekableView(io.RawIOBase):
    """Bytes that lie elsewhere, with a position of its own; a subclass reads them."""

    def __init__(self) -> None:
        self._position = 0

    def _num_bytes(self) -> int:
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        base = (0, self._position, self._num_bytes())[whence]
        self._position = max(0, base + offset)
        return self._position


class _Section(SeekableView):
    """A part of a seekable stream."""

    def __init__(self, stream: IO[bytes], start: int, size: int) -> None:
        super().__init__()
        self._stream, self._start, self._size = stream, start, size

    def _num_bytes(self) -> int:
        return self._size

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        self._stream.seek(self._start + self._position)
        piece = self._stream.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


class _Checked:
    """A member of a zip archive, whose faults are those of an archive."""

    def __init__(self, member: IO[bytes]) -> None:
        self._member = member

    def read(self, size: int = -1, /) -> bytes:
        try:
            # read() would lose the data before the damage, and a long read1() those of its last piece.
            return self._member.read1(_MEMBER_BYTES if size < 0 else min(size, _MEMBER_BYTES))  # type: ignore[attr-defined, no-any-return]
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as cause:
            raise DamagedArchiveError(f"the archive is damaged: {cause}") from cause

    def close(self) -> None:
        self._member.close()
