"""Files that are no text, recognized by their first bytes, with the way to read their content."""

import re
from dataclasses import dataclass

_UNPACK = "unpack it and name the files inside"
_EXPORT = "export its text as JSONL, CSV or plain text"
_CONVERT = "convert it to Parquet or JSONL"
_REMOVE = "leave it out of corpus.path"
HEAD_BYTES = 512
"""Bytes of a file that tell its format."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A format that is not read."""

    name: str
    """With its article, as `a PNG picture`."""
    remedy: str
    may_hold_text: bool = True
    """False: nothing is lost where such a file lies beside a corpus."""

    @property
    def in_words(self) -> str:
        """Reason for refusing the file."""
        return f"it is {self.name}; {self.remedy}"


_MAGICS: tuple[tuple[int, bytes, Foreign], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", Foreign("a PNG picture", _REMOVE, False)),
    (0, b"\xff\xd8\xff", Foreign("a JPEG picture", _REMOVE, False)),
    (0, b"GIF87a", Foreign("a GIF picture", _REMOVE, False)),
    (0, b"GIF89a", Foreign("a GIF picture", _REMOVE, False)),
    (0, b"II*\0", Foreign("a TIFF picture", _REMOVE, False)),
    (0, b"MM\0*", Foreign("a TIFF picture", _REMOVE, False)),
    (8, b"WEBP", Foreign("a WebP picture", _REMOVE, False)),
    (8, b"WAVEfmt ", Foreign("a WAV recording", _REMOVE, False)),
    (8, b"AVI LIST", Foreign("a film", _REMOVE, False)),
    (0, b"\0\0\1\0\1", Foreign("an icon", _REMOVE, False)),
    (4, b"ftyp", Foreign("an MP4 film or a HEIC picture", _REMOVE, False)),
    (0, b"\x1aE\xdf\xa3", Foreign("a Matroska film", _REMOVE, False)),
    (0, b"ID3\3", Foreign("an MP3 recording", _REMOVE, False)),
    (0, b"ID3\4", Foreign("an MP3 recording", _REMOVE, False)),
    (0, b"OggS\0", Foreign("an Ogg recording", _REMOVE, False)),
    (0, b"fLaC\0", Foreign("a FLAC recording", _REMOVE, False)),
    (0, b"wOFF", Foreign("a font", _REMOVE, False)),
    (0, b"wOF2", Foreign("a font", _REMOVE, False)),
    (0, b"OTTO\0", Foreign("a font", _REMOVE, False)),
    (0, b"\0\1\0\0\0", Foreign("a font", _REMOVE, False)),
    (0, b"\x7fELF", Foreign("a program", _REMOVE, False)),
    (0, b"\xca\xfe\xba\xbe", Foreign("a program", _REMOVE, False)),
    (0, b"\xcf\xfa\xed\xfe", Foreign("a program", _REMOVE, False)),
    (0, b"\xfe\xed\xfa", Foreign("a program", _REMOVE, False)),
    (0, b"\0asm\1", Foreign("a WebAssembly program", _REMOVE, False)),
    (0, b"%PDF-", Foreign("a PDF document", _EXPORT)),
    (0, b"%!PS-Adobe", Foreign("a PostScript document", _EXPORT)),
    (0, b"{\\rtf", Foreign("an RTF document", _EXPORT)),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Foreign("an old Word, Excel or Outlook file", _EXPORT)),
    (60, b"BOOKMOBI", Foreign("a Mobipocket book", _EXPORT)),
    (0, b"AT&TFORM", Foreign("a DjVu document", _EXPORT)),
    (0, b"SQLite format 3\0", Foreign("an SQLite database", _EXPORT)),
    (8, b"DUCK", Foreign("a DuckDB database", _EXPORT)),
    (0, b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", _UNPACK)),
    (0, b"Rar!\x1a\7", Foreign("a RAR archive", _UNPACK)),
    (0, b"MSCF\0\0\0\0", Foreign("a cabinet archive", _UNPACK)),
    (0, b"!<arch>\n", Foreign("an ar archive", _UNPACK)),
    (0, b"070701", Foreign("a cpio archive", _UNPACK)),
    (0, b"\x1f\x9d", Foreign("a file compressed with compress", "unpack it with uncompress")),
    (0, b"LZIP\1", Foreign("a file compressed with lzip", "unpack it with lzip -d")),
    (0, b"\x02\x21\x4c\x18", Foreign("a file compressed with an old lz4", "unpack it with lz4 -d")),
    (0, b"\xff\6\0\0sNaPpY", Foreign("a file compressed with snappy", _UNPACK)),
    (0, b"\x89LZO\0\r\n", Foreign("a file compressed with lzop", "unpack it with lzop -d")),
    (0, b"\x93NUMPY", Foreign("a NumPy array", _REMOVE, False)),
    (0, b"\x89HDF\r\n\x1a\n", Foreign("an HDF5 file", _CONVERT)),
    (0, b"CDF\1", Foreign("a NetCDF file", _CONVERT)),
    (0, b"ORC", Foreign("an ORC table", _CONVERT)),
    (0, b"Obj\1", Foreign("an Avro file", _CONVERT)),
    (0, b"FEA1", Foreign("a Feather file of version 1", "write it again as Parquet or Arrow, with pandas or pyarrow")),
    (0, b"PARE", Foreign("an encrypted Parquet file", "write it again without encryption")),
    (0, b"RDX", Foreign("an R data file", _CONVERT)),
    (0, b"\x80\2", Foreign("a Python pickle", _CONVERT)),
    (0, b"\x80\3", Foreign("a Python pickle", _CONVERT)),
    (0, b"\x80\4\x95", Foreign("a Python pickle", _CONVERT)),
    (0, b"\x80\5\x95", Foreign("a Python pickle", _CONVERT)),
    (0, b"GGUF", Foreign("the weights of a model", _REMOVE, False)),
)
# Some magics are words that prose may begin with; these files hold control characters close behind.
_WORDS = {
    *(b"\xca\xfe\xba\xbe", b"\xcf\xfa\xed\xfe", b"\xfe\xed\xfa"),
    *(b"ORC", b"wOFF", b"wOF2", b"GGUF", b"FEA1", b"PARE", b"RDX", b"ftyp", b"WEBP", b"DUCK", b"070701", b"AVI LIST"),
}
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"\s*+(?:<!--.{0,400}?-->\s*+)?<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
_XML = re.compile(rb"\s*+<\?xml\b")
LFS_POINTER = Foreign("a pointer of Git LFS, whose data is elsewhere", "run git lfs pull in its repository")
NESTED = Foreign("a file compressed twice", "unpack it once")
NESTED_ARCHIVE = Foreign("an archive inside another archive or compression", "unpack the outer one")
LINK_AS_TEXT = Foreign(
    "a link as Git writes it on a system without links", "check its repository out again with links", False
)


def foreign_format(head: bytes) -> Foreign | None:
    """The format of a file that is no text; None if its first bytes name none.

    Args:
        head: First bytes of the file, at least `HEAD_BYTES` unless it is shorter.
    """
    if head.startswith(_LFS):
        return LFS_POINTER
    for offset, magic, format in _MAGICS:
        if head.startswith(magic, offset) and (magic not in _WORDS or _CONTROL.search(head[:64])):
            return format
    is_safetensors = head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 27
    return Foreign("the weights of a model", _REMOVE, False) if is_safetensors else None


def is_html(head: bytes) -> bool:
    """True for a page of HTML."""
    return _HTML.match(head) is not None


def is_xml(head: bytes) -> bool:
    """True for XML that says so."""
    return _XML.match(head) is not None
