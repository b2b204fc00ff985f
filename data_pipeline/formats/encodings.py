"""Detect the encoding of a file by its bytes."""

import codecs
import re
from dataclasses import dataclass

from charset_normalizer import from_bytes

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
_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
_GUESSER_BYTES = 1 << 16


@dataclass(frozen=True)
class Encoding:
    """An encoding and the evidence for it."""

    name: str
    note: str
    bom_bytes: int = 0
    """Length of the byte order mark at the beginning."""


class HighByteSample:
    """Collects a sample of the lines with bytes above 127 while a file is read.

    ASCII lines carry no information about the encoding: a file may begin with hundreds of megabytes of them.
    """

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self._num_bytes = 0
        self._rest = b""

    def add(self, piece: bytes) -> None:
        """Add the next bytes of the file."""
        if self._num_bytes >= _SAMPLE_BYTES:
            return
        cut = piece.rfind(b"\n") + 1
        whole, rest = (self._rest + piece[:cut], piece[cut:]) if cut else (b"", self._rest + piece)
        # A line longer than the sample is cut at any byte; one broken character does no harm.
        if len(rest) > _SAMPLE_BYTES:
            whole, rest = whole + rest, b""
        self._rest = rest
        self._take(whole)

    def finish(self) -> list[bytes]:
        """All collected lines; call it once, at the end of the file."""
        self._take(self._rest)
        self._rest = b""
        return self.lines

    def _take(self, data: bytes) -> None:
        if data.isascii():
            return
        for line in data.split(b"\n"):
            if line.isascii():
                continue
            line = line[: _SAMPLE_BYTES - self._num_bytes]
            self.lines.append(line)
            self._num_bytes += len(line)
            if self._num_bytes >= _SAMPLE_BYTES:
                return


def detect_encoding(head: bytes, high_lines: list[bytes]) -> Encoding:
    """The most probable encoding of a file: by byte order mark, NUL pattern, UTF-8 validity, then byte statistics.

    Args:
        head: First bytes of the file, at least a few thousand unless the file is shorter.
        high_lines: Lines with bytes above 127, from `HighByteSample`.
    """
    for bom, name in _BOMS:
        if head.startswith(bom):
            return Encoding(name, "byte order mark", len(bom))
    wide = _wide_encoding(head)
    if wide is not None:
        return Encoding(wide, "every second byte is NUL")
    if not high_lines:
        return Encoding("utf-8", "ASCII only")
    num_valid = sum(_is_valid(line, "utf-8", "surrogatepass") for line in high_lines)
    share = f"{num_valid} of {len(high_lines)} lines above ASCII valid"
    # A line in another encoding is almost never valid UTF-8: if half of the lines are valid, the others are damaged.
    if 2 * num_valid >= len(high_lines):
        return Encoding("utf-8", share)
    return _legacy_encoding(high_lines)


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


def _legacy_encoding(lines: list[bytes]) -> Encoding:
    """GB18030 uses high bytes in pairs; Latin-1 uses single accented letters among ASCII."""
    sample = b"\n".join(lines)
    runs = _HIGH_RUN.findall(sample)
    single = sum(len(run) == 1 for run in runs) / len(runs)
    num_valid = sum(_is_valid(line, "gb18030") for line in lines)
    note = f"{1 - single:.0%} of runs above ASCII longer than one byte, {num_valid} of {len(lines)} lines valid GB18030"
    if single < 0.3 and num_valid >= 0.9 * len(lines) and _share_even(runs) > 0.8:
        return Encoding("gb18030", note)
    if single > 0.7:
        has_c1 = re.search(rb"[\x80-\x9f]", sample) is not None
        return Encoding("cp1252" if has_c1 else "latin-1", note)
    guess = from_bytes(sample[:_GUESSER_BYTES]).best()
    if guess is None:
        return Encoding("latin-1", f"fallback, no encoding matches; {note}")
    return Encoding(guess.encoding.replace("_", "-"), f"charset-normalizer; {note}")


def _share_even(runs: list[bytes]) -> float:
    # The second byte of a pair may be ASCII in GBK, so a few runs are odd.
    return sum(len(run) % 2 == 0 for run in runs) / len(runs)


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
    return None
