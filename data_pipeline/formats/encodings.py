"""Detect the encoding of a file by its bytes."""

import codecs
import re

from data_pipeline.formats.legacy_encodings import Encoding, several_bytes_encoding, single_byte_encoding

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WIDE_ENCODINGS = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")

# Supersets that decode the same bytes, and aliases.
_SAME_AS = {"gbk": "gb18030", "gb2312": "gb18030", "utf-8-sig": "utf-8", "iso8859-1": "latin-1", "ascii": "utf-8"}
_SAMPLE_BYTES = 1 << 20
_MARK_SAMPLE_BYTES = 1 << 12
_PRINTABLE = re.compile(rb"[\t\n\r -~]")
_SHARE_PRINTABLE = 0.95
_FEW_LINES = 2
_FEW_SHARE = 0.05


class LineSample:
    """Counts the lines of a file that are no UTF-8 while it is read, and collects some of those with bytes above 127.

    ASCII lines carry no information about the encoding: a file may begin with hundreds of megabytes of them.
    """

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        """Lines with bytes above 127: all of them, up to a megabyte."""
        self.bad_lines: list[bytes] = []
        """Lines that are no UTF-8: all of them, up to a megabyte."""
        self.num_lines = 0
        self.num_bad = 0
        self._num_bytes = 0
        self._num_bad_bytes = 0
        self._rest = b""

    def add(self, piece: bytes) -> None:
        """Add the next bytes of the file."""
        cut = piece.rfind(b"\n") + 1
        whole, rest = (self._rest + piece[:cut], piece[cut:]) if cut else (b"", self._rest + piece)
        if len(rest) > _SAMPLE_BYTES:
            # A line longer than the sample is cut, between characters of UTF-8.
            cut = next((len(rest) - back for back in range(4) if rest[len(rest) - back - 1] & 0xC0 != 0x80), len(rest))
            cut -= rest[cut - 1] >= 0xC0
            whole, rest = whole + rest[:cut], rest[cut:]
        self._rest = rest
        self._take(whole)

    def finish(self) -> "LineSample":
        """The sample itself; call it once, at the end of the file."""
        if self._rest:
            self._take(self._rest)
            self.num_lines += not self._rest.endswith(b"\n")
        self._rest = b""
        return self

    def _take(self, data: bytes) -> None:
        self.num_lines += data.count(b"\n")
        if data.isascii():
            return
        is_valid = _is_valid(data, "utf-8", "surrogatepass")
        if is_valid and self._num_bytes >= _SAMPLE_BYTES:
            return
        for line in data.split(b"\n"):
            if line.isascii():
                continue
            if not is_valid and not _is_valid(line, "utf-8", "surrogatepass"):
                self.num_bad += 1
                self._num_bad_bytes += self._keep(self.bad_lines, line, self._num_bad_bytes)
            self._num_bytes += self._keep(self.lines, line, self._num_bytes)

    @staticmethod
    def _keep(lines: list[bytes], line: bytes, num_bytes: int) -> int:
        """Bytes of the line that are kept."""
        line = line[: max(0, _SAMPLE_BYTES - num_bytes)]
        if line:
            lines.append(line)
        return len(line)


def detect_encoding(head: bytes, sample: LineSample) -> Encoding:
    """The most probable encoding of a file: by byte order mark, NUL pattern, UTF-8 validity, then byte statistics.

    Args:
        head: First bytes of the file, at least a few thousand unless the file is shorter.
        sample: All lines of the file, added.
    """
    for bom, name in _BOMS:
        if head.startswith(bom) and (name == "utf-8" or not _is_ascii_behind(head, len(bom))):
            return Encoding(name, "byte order mark", len(bom))
    wide = _wide_encoding(head)
    if wide is not None:
        return Encoding(wide, "every second byte is NUL")
    if not sample.lines:
        return Encoding("utf-8", "ASCII only")
    num_valid = sum(_is_valid(line, "utf-8", "surrogatepass") for line in sample.lines)
    share = f"{num_valid} of {len(sample.lines)} lines above ASCII valid"
    # A line in another encoding is almost never valid UTF-8: if half of the lines are valid, the others are damaged.
    if 2 * num_valid >= len(sample.lines):
        return Encoding("utf-8", share)
    several = several_bytes_encoding(sample.bad_lines)
    if several is not None:
        return several
    if sample.num_bad <= _FEW_LINES and sample.num_bad <= _FEW_SHARE * sample.num_lines:
        lines = "line is" if sample.num_bad == 1 else "lines are"
        return Encoding("utf-8", f"all but {sample.num_bad} of {sample.num_lines:,} lines; the {lines} rejected")
    return single_byte_encoding(sample.bad_lines)


def _is_ascii_behind(head: bytes, start: int) -> bool:
    """True if the bytes behind a mark of UTF-16 or UTF-32 are plain ASCII, so that the mark is a damaged line."""
    sample = head[start : start + _MARK_SAMPLE_BYTES]
    return b"\0" not in sample and len(_PRINTABLE.findall(sample)) > _SHARE_PRINTABLE * max(len(sample), 1)


def configured_encoding(name: str, head: bytes) -> Encoding:
    """The encoding that corpus.encoding names; for UTF-16 and UTF-32 the first bytes give the byte order.

    Args:
        name: Any name that Python knows.
        head: First bytes of the file.
    """
    name = codecs.lookup(name).name
    name = _SAME_AS.get(name, name)
    boms = [(bom, full) for bom, full in _BOMS if full.startswith(name) and head.startswith(bom)]
    if boms:
        return Encoding(boms[0][1], "set in corpus.encoding", len(boms[0][0]))
    return Encoding(f"{name}-le" if name in ("utf-16", "utf-32") else name, "set in corpus.encoding")


def _is_valid(line: bytes, encoding: str, errors: str = "strict") -> bool:
    try:
        line.decode(encoding, errors)
    except UnicodeDecodeError:
        return False
    return True


def _wide_encoding(head: bytes) -> str | None:
    head = head[: len(head) // 4 * 4][:4096]
    if not head:
        return None
    nul = [head[offset::4].count(0) / (len(head) / 4) for offset in range(4)]
    if min(nul[2], nul[3]) > 0.5 and nul[0] < 0.1:
        return "utf-32-le"
    if nul[0] > 0.3 and nul[2] > 0.3 and max(nul[1], nul[3]) < 0.1:
        return "utf-16-be"
    if nul[1] > 0.3 and nul[3] > 0.3 and max(nul[0], nul[2]) < 0.1:
        return "utf-16-le"
    return next((name for name in ("utf-16-le", "utf-16-be") if _is_east_asian(head, name)), None)


def _is_east_asian(head: bytes, encoding: str) -> bool:
    """True for Chinese, Japanese or Korean in UTF-16, whose few NUL are halves of line ends and spaces."""
    if b"\0" not in head or _is_valid(head, "utf-8"):
        return False
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError:
        return False
    east_asian = sum("\u2e80" <= character <= "\ud7ff" or character > "\uff00" for character in text)
    plain = sum(" " <= character <= "~" or character in "\n\r\t" for character in text)
    return east_asian > 0.5 * len(text) and east_asian + plain > 0.95 * len(text) and plain > 0
