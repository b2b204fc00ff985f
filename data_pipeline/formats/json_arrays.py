"""Rows of JSON, cut from its text piece by piece: the elements of arrays, and values one after another.

The work grows with the text, however it is made.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

_SEPARATORS = re.compile(r"[\s,]*+")
_NEXT_OBJECT = re.compile(r"\}[\s,]*+(?=\{)")
# White space is bounded: looked at from each of its characters, it would take quadratic time.
_NEXT_VALUE = re.compile(r"\}[\s,]*+(?=\{)|\n(?=[ \t]{0,64}[\[{])")
_LONGEST_JSON_ATOM = 16
"""No literal, sign or escape is longer, so a parse error further from the end is not caused by truncation."""
_SMALLEST_WINDOW = 1 << 8
_WINDOW_GROWTH = 4
_MOST_LOOKS = 32
"""Times that malformed elements may look at each character on average."""
_LOOKS_IN_ADVANCE = 1 << 20
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Element:
    """One element of an array, one value outside of arrays, or the malformed text up to the next object."""

    line: int
    """Its first line, from 1."""
    text: str
    """Of an element that is too long, the beginning."""
    is_too_long: bool = False


def array_elements(chunks: Iterator[str], *, longest: int) -> Iterator[Element]:
    """The elements of all arrays and the values between them; memory holds only the element being read.

    Args:
        longest: Characters of an element beyond which it is too long; its remainder is then skipped up to the next
            object.
    """
    return _ArrayCutter(chunks, longest).elements()


class _ArrayCutter:
    """The text read and not yet cut, and the place in it."""

    def __init__(self, chunks: Iterator[str], longest: int) -> None:
        self._chunks = chunks
        self._longest = longest
        self._text = next(chunks, "")
        self._position = 0
        self._is_in_array = False
        self._is_whole = False
        self._line, self._counted = 1, 0
        self._window = _SMALLEST_WINDOW
        # Looks at malformed text, less those that its length allows.
        self._looks_too_many = -_LOOKS_IN_ADVANCE

    def elements(self) -> Iterator[Element]:
        while True:
            start = self._position = _SEPARATORS.match(self._text, self._position).end()  # type: ignore[union-attr]
            self._count_lines()
            end = self._end_of_element()
            if end is None and len(self._text) - start > self._longest:
                yield Element(self._line, self._text[start : start + 400], is_too_long=True)
                self._skip_to_next_object()
            elif end is None:
                self._read_more()
            elif end == start:
                if start >= len(self._text):
                    return
                # A bracket: an array begins, or the one being read ends.
                self._is_in_array = self._text[start] == "["
                self._position = start + 1
            else:
                is_too_long = end - start > self._longest
                yield Element(self._line, self._text[start : start + 400 if is_too_long else end], is_too_long)
                self._position = end

    def _end_of_element(self) -> int | None:
        """End of the element; its start at a bracket of an outer array or the end, None if more text is needed."""
        text, start = self._text, self._position
        if start >= len(text):
            return start if self._is_whole else None
        if text[start] == ("]" if self._is_in_array else "["):
            return start
        looks, valid_up_to = 0, start
        while True:
            # A window, because the parser's error counts the lines of all the text before it.
            part = text[start : start + self._window]
            must_be_whole = self._is_whole and start + len(part) == len(text)
            looks += len(part)
            try:
                _, length = _DECODER.raw_decode(part)
                # A number may continue behind the end of the window.
                if length < len(part) - _LONGEST_JSON_ATOM or must_be_whole:
                    self._window = max(_SMALLEST_WINDOW, 2 * length)
                    return start + length
            except json.JSONDecodeError as error:
                is_cut_off = error.pos >= len(part) - _LONGEST_JSON_ATOM or error.msg.startswith("Unterminated string")
                if not is_cut_off or must_be_whole:
                    valid_up_to = start + error.pos
                    break
            except (RecursionError, ValueError):  # Nested too deep, or a number of too many digits.
                break
            valid_up_to = start + len(part) - _LONGEST_JSON_ATOM
            if start + len(part) == len(text):
                return None
            self._window *= _WINDOW_GROWTH
        return self._end_of_malformed(start, valid_up_to, looks)

    def _end_of_malformed(self, start: int, valid_up_to: int, looks: int) -> int | None:
        """End of a malformed element: the next object after its start.

        Elements that are malformed far behind their starts and nested in each other would be looked at again and again.
        When that was too often, they end after the fault instead.
        """
        is_too_often = self._looks_too_many + looks > 0
        following = self._next.search(self._text, max(valid_up_to, start + 1) if is_too_often else start + 1)
        if following is None:
            return len(self._text) if self._is_whole else None
        self._looks_too_many += looks - _MOST_LOOKS * (following.end() - start)
        self._looks_too_many = max(self._looks_too_many, -_LOOKS_IN_ADVANCE)
        self._window = _SMALLEST_WINDOW
        return following.end()

    @property
    def _next(self) -> re.Pattern[str]:
        return _NEXT_OBJECT if self._is_in_array else _NEXT_VALUE

    def _count_lines(self) -> None:
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position

    def _read_more(self) -> None:
        """Read as much as the buffer holds: doubling bounds how often a long element is parsed again."""
        kept = self._text[self._position :]
        enough = min(len(kept), self._longest - len(kept))
        parts = [kept]
        size = 0
        for chunk in self._chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > enough:
                break
        self._is_whole = size == 0
        self._text, self._position, self._counted = "".join(parts), 0, 0

    def _skip_to_next_object(self) -> None:
        while True:
            following = self._next.search(self._text, self._position)
            if following is not None or self._is_whole:
                self._position = following.end() if following is not None else len(self._text)
                return
            # The end of the element may be only partly in the buffer.
            self._position = max(self._position, len(self._text) - _SMALLEST_WINDOW)
            self._count_lines()
            self._read_more()
