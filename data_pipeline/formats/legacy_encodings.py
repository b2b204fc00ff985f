"""Encodings before Unicode, told by the statistics of their bytes. Where two fit, the file is refused, not guessed."""

import re
from dataclasses import dataclass

from charset_normalizer import from_bytes

_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
_GUESSER_BYTES = 1 << 16


@dataclass(frozen=True)
class Encoding:
    """An encoding and the evidence for it."""

    name: str
    note: str
    bom_bytes: int = 0
    """Length of the byte order mark at the beginning."""
    is_guess: bool = False
    """Found by the statistics of its bytes: another encoding would fit, too."""
    refused: str | None = None
    """Reason why no encoding is taken; None if one is."""


def several_bytes_encoding(lines: list[bytes]) -> Encoding | None:
    """GB18030 uses high bytes in pairs; None if the lines are not of such an encoding."""
    sample = b"\n".join(lines)
    runs = _HIGH_RUN.findall(sample)
    single = sum(len(run) == 1 for run in runs) / len(runs)
    num_valid = sum(_is_valid(line, "gb18030") for line in lines)
    note = f"{1 - single:.0%} of runs above ASCII longer than one byte, {num_valid} of {len(lines)} lines valid GB18030"
    if single < 0.3 and num_valid >= 0.9 * len(lines) and _share_even(runs) > 0.8:
        return Encoding("gb18030", note)
    return None


def single_byte_encoding(lines: list[bytes]) -> Encoding:
    sample = b"\n".join(lines)
    runs = _HIGH_RUN.findall(sample)
    single = sum(len(run) == 1 for run in runs) / len(runs)
    note = f"guessed from {len(lines):,} lines"
    if single > 0.7:
        has_c1 = re.search(rb"[\x80-\x9f]", sample) is not None
        return Encoding("cp1252" if has_c1 else "latin-1", note, is_guess=True)
    guess = from_bytes(sample[:_GUESSER_BYTES]).best()
    if guess is None or guess.encoding.startswith("utf"):
        return Encoding("latin-1", f"fallback, no encoding matches; {note}", is_guess=True)
    return Encoding(guess.encoding.replace("_", "-"), f"charset-normalizer; {note}", is_guess=True)


def _share_even(runs: list[bytes]) -> float:
    # The second byte of a pair may be ASCII in GBK, so a few runs are odd.
    return sum(len(run) % 2 == 0 for run in runs) / len(runs)


def _is_valid(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
