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
LONGEST_RECORD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Dialect:
    """The characters of a table."""

    delimiter: str = ","
    quote: str = '"'
    """Around a field that holds delimiters or line ends, doubled inside; "" for none."""
    escape: str = ""
    """Makes a delimiter, a quote, a line end or itself plain; "" for none."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record, or one malformed line."""

    line: int
    """First physical line, from 1."""
    raw: bytes
    fields: list[bytes] | None
    """None: a quote is not closed, or text follows a closing quote."""


def csv_records(data: bytes, dialect: Dialect, *, first_line: int) -> Iterator[Record]:
    """Records of a piece that begins and ends at record boundaries; a blank line is a record with one empty field."""
    separator = dialect.delimiter.encode()
    line = first_line
    position = 0
    while position < len(data):
        plain_end = _start_of_quoted_record(data, position, dialect)
        plain = data[position:plain_end]
        for raw in plain.removesuffix(b"\n").split(b"\n") if plain else ():
            content = raw.rstrip(b"\r")
            yield Record(line, content, content.split(separator))
            line += 1
        position = plain_end
        if position >= len(data):
            return
        end = _end_of_quoted_record(data, position, dialect)
        if end is None:
            end = (data.find(b"\n", position) + 1) or len(data)
            raw = data[position:end].rstrip(b"\r\n")
            yield Record(line, raw, None)
        else:
            raw = data[position:end].rstrip(b"\r\n")
            yield Record(line, raw, _fields(raw, dialect))
        line += data.count(b"\n", position, end)
        position = end


def end_of_last_record(data: bytes | bytearray, dialect: Dialect) -> int:
    """Position behind the last record that is certainly complete, in bytes; 0 if there is none.

    A reader cuts a growing buffer there.
    """
    position = 0
    while True:
        quoted = _start_of_quoted_record(data, position, dialect)
        if quoted >= len(data):
            return data.rfind(b"\n", position) + 1 or position
        end = _end_of_quoted_record(data, quoted, dialect)
        if end is not None and data[end - 1 : end] == b"\n":
            position = end
        elif len(data) - quoted < LONGEST_RECORD_BYTES:
            return quoted
        else:
            position = data.find(b"\n", quoted) + 1 or len(data)


def _start_of_quoted_record(data: bytes | bytearray, position: int, dialect: Dialect) -> int:
    """Where the next record begins that may hold a quote or an escape."""
    found = (data.find(mark.encode(), position) for mark in (dialect.quote, dialect.escape) if mark)
    mark = min((place for place in found if place >= 0), default=-1)
    return len(data) if mark < 0 else max(data.rfind(b"\n", position, mark) + 1, position)


def _end_of_quoted_record(data: bytes | bytearray, start: int, dialect: Dialect) -> int | None:
    stop = min(len(data), start + LONGEST_RECORD_BYTES)
    match = _record(dialect).match(data, start, stop)
    if match is None or (match.end() == stop < len(data) and data[stop - 1 : stop] != b"\n"):
        return None
    return match.end()


@lru_cache
def _record(dialect: Dialect) -> re.Pattern[bytes]:
    field = _field_pattern(dialect)
    bound = re.escape(dialect.delimiter.encode())
    return re.compile(field + rb"(?:" + bound + field + rb")*+\r*+(?:\n|\Z)", re.DOTALL)


def _fields(raw: bytes, dialect: Dialect) -> list[bytes]:
    """The fields of a whole record, unquoted."""
    pattern = _field(dialect)
    fields, position = [], 0
    while True:
        match = pattern.match(raw, position)
        assert match is not None, "it also matches nothing"
        fields.append(_unquoted(match[0], dialect))
        position = match.end() + 1
        if position > len(raw):
            return fields


@lru_cache
def _field(dialect: Dialect) -> re.Pattern[bytes]:
    return re.compile(_field_pattern(dialect), re.DOTALL)


def _field_pattern(dialect: Dialect) -> bytes:
    # Possessive quantifiers: with backtracking, an unclosed quote would take exponential time.
    separator = re.escape(dialect.delimiter.encode())
    quote, escape = re.escape(dialect.quote.encode()), re.escape(dialect.escape.encode())
    escaped = escape + rb"." if escape else b""
    marks = quote + escape
    first, further = rb"[^\n\r" + separator + marks + rb"]", rb"[^\n\r" + separator + escape + rb"]"
    if escaped:
        first, further = rb"(?:" + first + rb"|" + escaped + rb")", rb"(?:" + further + rb"|" + escaped + rb")"
    plain = first + further + rb"*+"
    if not quote:
        return rb"(?:" + plain + rb"|)"
    inner = rb"[^" + marks + rb"]*+"
    again = quote + quote + (rb"|" + escaped if escaped else b"")
    quoted = quote + inner + rb"(?:(?:" + again + rb")" + inner + rb")*+" + quote
    return rb"(?:" + quoted + rb"|" + plain + rb"|)"


def _unquoted(field: bytes, dialect: Dialect) -> bytes:
    quote = dialect.quote.encode()
    if quote and field.startswith(quote):
        field = field[1:-1].replace(quote * 2, quote)
    if dialect.escape and dialect.escape.encode() in field:
        field = _escapes(dialect).sub(rb"\1", field)
    return field


@lru_cache
def _escapes(dialect: Dialect) -> re.Pattern[bytes]:
    """Escapes before a character that they make plain. Before any other, as in a path of Windows, they are text."""
    marks = "".join((dialect.quote, dialect.escape, dialect.delimiter))
    return re.compile(re.escape(dialect.escape.encode()) + rb"([\n\r" + re.escape(marks.encode()) + rb"])")
