"""CSV records in bytes: their boundaries and their fields.

Python's csv module reads a stream, so one unclosed quote swallows the rest of the file. Here an unclosed quote costs
only its own line, and record boundaries do not depend on where the file is cut into pieces.

Bytes are split before decoding. This is safe: no supported encoding (GB18030 included; wide encodings are converted to
UTF-8 first) uses the bytes of delimiters, quotes or line ends inside a longer character.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

# A quoted field may hold line ends; a quote without an end within this many bytes counts as unclosed.
LONGEST_RECORD_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One record, or one malformed line."""

    line: int
    """First physical line, from 1."""
    raw: bytes
    fields: list[bytes] | None
    """None: a quote is not closed, or text follows a closing quote."""


def csv_records(data: bytes, delimiter: str, *, first_line: int) -> Iterator[Record]:
    """Records of a piece that begins and ends at record boundaries; a blank line is a record with one empty field."""
    separator = delimiter.encode()
    line = first_line
    position = 0
    while position < len(data):
        plain_end = _start_of_quoted_record(data, position)
        plain = data[position:plain_end]
        for raw in plain.removesuffix(b"\n").split(b"\n") if plain else ():
            content = raw.rstrip(b"\r")
            yield Record(line, content, content.split(separator))
            line += 1
        position = plain_end
        if position >= len(data):
            return
        end = _end_of_quoted_record(data, position, separator)
        if end is None:
            end = (data.find(b"\n", position) + 1) or len(data)
            raw = data[position:end].rstrip(b"\r\n")
            yield Record(line, raw, None)
        else:
            raw = data[position:end].rstrip(b"\r\n")
            yield Record(line, raw, [_unquoted(match) for match in _field(separator).finditer(raw)])
        line += data.count(b"\n", position, end)
        position = end


def end_of_last_record(data: bytes | bytearray, delimiter: str) -> int:
    """Position behind the last record that is certainly complete, in bytes; 0 if there is none.

    A reader cuts a growing buffer there.
    """
    separator = delimiter.encode()
    position = 0
    while True:
        quoted = _start_of_quoted_record(data, position)
        if quoted >= len(data):
            return data.rfind(b"\n", position) + 1 or position
        end = _end_of_quoted_record(data, quoted, separator)
        if end is not None and data[end - 1 : end] == b"\n":
            position = end
        elif len(data) - quoted < LONGEST_RECORD_BYTES:
            return quoted
        else:
            position = data.find(b"\n", quoted) + 1 or len(data)


def _start_of_quoted_record(data: bytes | bytearray, position: int) -> int:
    quote = data.find(b'"', position)
    return len(data) if quote < 0 else max(data.rfind(b"\n", position, quote) + 1, position)


def _end_of_quoted_record(data: bytes | bytearray, start: int, separator: bytes) -> int | None:
    stop = min(len(data), start + LONGEST_RECORD_BYTES)
    match = _record(separator).match(data, start, stop)
    if match is None or (match.end() == stop < len(data) and data[stop - 1 : stop] != b"\n"):
        return None
    return match.end()


@lru_cache
def _record(separator: bytes) -> re.Pattern[bytes]:
    field = _field_pattern(separator)
    return re.compile(field + rb"(?:" + re.escape(separator) + field + rb")*+\r*+(?:\n|\Z)")


@lru_cache
def _field(separator: bytes) -> re.Pattern[bytes]:
    bound = re.escape(separator)
    return re.compile(rb"(?:\A|(?<=" + bound + rb"))(" + _field_pattern(separator) + rb")(?=" + bound + rb"|\Z)")


def _field_pattern(separator: bytes) -> bytes:
    # Possessive quantifiers: with backtracking, an unclosed quote would take exponential time.
    quoted = rb'"[^"]*+(?:""[^"]*+)*+"'
    plain = rb'[^"\n\r' + re.escape(separator) + rb"][^\n\r" + re.escape(separator) + rb"]*+"
    return rb"(?:" + quoted + rb"|" + plain + rb"|)"


def _unquoted(match: re.Match[bytes]) -> bytes:
    field = match[1]
    return field[1:-1].replace(b'""', b'"') if field.startswith(b'"') else field
