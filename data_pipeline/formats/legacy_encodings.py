"""Encodings before Unicode, told by the statistics of their bytes. Where several fit, the file is refused, not guessed.

Several bytes a character: all lines must be valid, and most characters common ones of the language. One byte: the
characters beside letters must be letters, small ones inside of words. Measured beside three detectors in
tests/benchmarks/encodings_told.py.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

_FEWEST_CHARACTERS = 4
_COMMON = 0.6
_FITS = 0.97
_SHARE_OF_ANOTHER_SCRIPT = 0.4
_MARGIN = 0.15
_BESIDE_LETTERS = re.compile(rb"(?<=[A-Za-z])[\x80-\xff]+|[\x80-\xff]+(?=[A-Za-z])")
_HIGH = re.compile(rb"[\x80-\xff]")
_LETTERS = re.compile(rb"[A-Za-z]")
_HIGH_WORD = re.compile(rb"[\x80-\xff]{2,}")
# Signs of cp1252 that stand beside letters: quotes, dashes, ellipsis, trade marks, degrees, guillemets, spaces.
_SIGNS = set("‘’“”„–—…™†€«»°ºª©®·£§´¿¡\u00a0\u00ad")
_LATIN = ("iso8859-2", "cp1250", "cp437", "cp850", "cp852", "mac-roman", "cp1254")
# Scripts without capitals (Hebrew, Arabic, Thai) cannot be told so: their letters fit nearly all bytes.
_CYRILLIC = frozenset("оеаинтсрвлкмдпуі")
_GREEK = frozenset("αοιετσνηυρκπμλςάόίέήύώ")
_OTHER_SCRIPTS = dict.fromkeys(("cp1251", "koi8-r", "iso8859-5", "cp866"), _CYRILLIC) | dict.fromkeys(
    ("cp1253", "iso8859-7"), _GREEK
)
"""The most frequent letters of the languages that an encoding is for."""
_CZECH_AS_CP1252 = ("ø", "ì")
"""The Czech letters with a caron, read as cp1252: no western language has both."""


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
    """GB18030, EUC-JP, EUC-KR, Shift JIS or Big5; None if the lines are of none of them.

    Args:
        lines: The lines that are no UTF-8.
    """
    found: list[tuple[float, str, str]] = []
    for name, common in _SEVERAL_BYTES.items():
        texts = [text for line in lines if (text := _decoded(line, name)) is not None]
        characters = [character for text in texts for character in text if character > "\x7f"]
        if len(texts) < 0.9 * len(lines) or len(characters) < _FEWEST_CHARACTERS:
            continue
        share = common(characters)
        if share >= _COMMON:
            found.append(
                (share, name, f"{len(texts)} of {len(lines)} lines valid, {share:.0%} of the characters common")
            )
    if not found:
        return None
    _, name, note = max(found)
    return Encoding(name, note)


def single_byte_encoding(lines: list[bytes]) -> Encoding:
    """An encoding of one byte a character, said to be a guess; refused where several fit and give other texts."""
    sample = b"\n".join(lines)
    num_high, num_letters = len(_HIGH.findall(sample)), len(_LETTERS.findall(sample))
    note = f"guessed from {len(lines):,} line{'s' if len(lines) > 1 else ''}"
    if num_high > _SHARE_OF_ANOTHER_SCRIPT * (num_high + num_letters) and _HIGH_WORD.search(sample):
        shares = {name: _share_of_frequent(sample, name, letters) for name, letters in _OTHER_SCRIPTS.items()}
        best = max(shares, key=shares.__getitem__)
        rivals = [name for name in shares if shares[name] > shares[best] - _MARGIN and not _same(sample, name, best)]
        return Encoding(best, note, is_guess=True) if shares[best] >= _COMMON and not rivals else _refused(lines)
    is_czech = all(letter.encode("cp1252") in sample for letter in _CZECH_AS_CP1252)
    if _share_that_fits(sample, "cp1252") >= _FITS and not is_czech:
        has_c1 = re.search(rb"[\x80-\x9f]", sample) is not None
        return Encoding("cp1252" if has_c1 else "latin-1", note, is_guess=True)
    shares = {name: _share_that_fits(sample, name) for name in _LATIN}
    best = max(shares, key=shares.__getitem__)
    rivals = [name for name in shares if shares[name] > shares[best] - 0.02 and not _same(sample, name, best)]
    return Encoding(best, note, is_guess=True) if shares[best] >= _FITS and not rivals else _refused(lines)


def _refused(lines: list[bytes]) -> Encoding:
    reason = (
        f"it is no UTF-8 on {len(lines):,} or more lines, and its encoding cannot be told; set corpus.encoding, for "
        "example to cp1252, iso8859-2, cp437, euc-jp or euc-kr"
    )
    return Encoding("utf-8", "not told", is_guess=True, refused=reason)


def _decoded(line: bytes, encoding: str) -> str | None:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        return None


def _same(sample: bytes, one: str, other: str) -> bool:
    return sample.decode(one, "replace") == sample.decode(other, "replace")


def _share_that_fits(sample: bytes, encoding: str) -> float:
    """Share of the characters beside letters that can be there: small letters, capitals at the start, quotes."""
    good = total = 0
    for match in _BESIDE_LETTERS.finditer(sample):
        is_inside = match.start() > 0 and sample[match.start() - 1 : match.start()].isalpha()
        is_capital = sample[max(0, match.start() - 1) : match.end() + 1].isupper()
        for character in match[0].decode(encoding, "replace"):
            total += 1
            is_letter = character.isalpha() and (character.islower() or not is_inside or is_capital)
            good += is_letter or (encoding == "cp1252" and character in _SIGNS)
    return good / total if total else float(encoding == "cp1252")


def _share_of_frequent(sample: bytes, encoding: str, letters: frozenset[str]) -> float:
    """Share of the characters above ASCII that are frequent letters."""
    text = b"".join(_HIGH_WORD.findall(sample)).decode(encoding, "replace")
    return sum(character in letters for character in text) / max(len(text), 1)


def _common_simplified(characters: list[str]) -> float:
    """Chinese: characters of the first level of GB2312, or written with four bytes; those of Korean are few of them."""
    leads = [encoded[0] for character in characters for encoded in [character.encode("gb18030")] if len(encoded) == 2]
    four = len(characters) - len(leads)
    ideographs = [lead for lead in leads if 0xB0 <= lead <= 0xD7]
    signs = sum(lead in (0xA1, 0xA3) for lead in leads)
    if len(ideographs) > 8 and sum(lead > 0xC8 for lead in ideographs) < 0.08 * len(ideographs):
        return 0.0
    return (len(ideographs) + signs + four) / len(characters)


def _common_traditional(characters: list[str]) -> float:
    pairs = [character.encode("big5", "ignore")[:2] for character in characters]
    common = (b"\xa1\x40" <= pair <= b"\xa1\xfe" or b"\xa4\x40" <= pair <= b"\xc6\x7e" for pair in pairs)
    return sum(common) / len(pairs)


def _common_japanese(characters: list[str]) -> float:
    kana = sum("\u3041" <= character <= "\u30ff" for character in characters)
    others = sum("\u3000" <= character <= "\u303f" or "\u4e00" <= character <= "\u9fff" for character in characters)
    return 0.0 if kana < 0.2 * len(characters) else (kana + others) / len(characters)


def _common_korean(characters: list[str]) -> float:
    return sum("\uac00" <= character <= "\ud7a3" for character in characters) / len(characters)


_SEVERAL_BYTES: dict[str, Callable[[list[str]], float]] = {
    "gb18030": _common_simplified,
    "euc-jp": _common_japanese,
    "shift-jis": _common_japanese,
    "euc-kr": _common_korean,
    "big5": _common_traditional,
}
"""Share of the characters above ASCII that are common in the language of each encoding."""
