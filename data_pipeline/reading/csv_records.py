"""Where CSV records begin and end, in bytes, and what is in them.

Python's csv module reads a stream: one quote that is never closed swallows all that follows. Here a record that does
not close its quote costs its own line, and what a record is does not depend on where the file was cut into pieces.

Delimiters, quotes and line ends are never part of a longer character in any encoding that we read (GB18030 included;
wide ones are turned into UTF-8 before), so bytes can be cut before they are decoded.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

# A quoted field may hold line ends; one longer than this counts as never closed.
LONGEST_RECORD_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One record, or one line that is none."""

    line: int
    """First physical line, from 1."""
    raw: bytes
    fields: list[bytes] | None
    """None: a quote is not closed, or something follows it."""


def csv_records(data: bytes, delimiter: str, *, first_line: int) -> Iterator[Record]:
    """Records of a piece that begins and ends between records; blank lines come as a record with one empty field."""
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


def end_of_last_record(data: bytes, delimiter: str) -> int:
    """Where to cut a buffer that is to grow: the end of the last record that is surely whole; 0 if none is."""
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


def _start_of_quoted_record(data: bytes, position: int) -> int:
    quote = data.find(b'"', position)
    return len(data) if quote < 0 else max(data.rfind(b"\n", position, quote) + 1, position)


def _end_of_quoted_record(data: bytes, start: int, separator: bytes) -> int | None:
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
    # Possessive: without them a quote that is never closed is tried in every way it could be cut.
    quoted = rb'"[^"]*+(?:""[^"]*+)*+"'
    plain = rb'[^"\n\r' + re.escape(separator) + rb"][^\n\r" + re.escape(separator) + rb"]*+"
    return rb"(?:" + quoted + rb"|" + plain + rb"|)"


def _unquoted(match: re.Match[bytes]) -> bytes:
    field = match[1]
    return field[1:-1].replace(b'""', b'"') if field.startswith(b'"') else field
