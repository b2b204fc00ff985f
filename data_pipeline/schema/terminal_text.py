"""Text from files, models and environments on a terminal: characters that act on a terminal are shown as escapes."""

import json
import re
from typing import IO, Any

_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]")
"""Control characters (C0, DEL, C1), line and paragraph separators, bidirectional overrides, surrogates, tags."""


def visible(text: str, *, keep: str = "") -> str:
    """The text with a visible escape, such as `\\x1b`, in place of each character that a terminal acts on.

    Escape sequences, carriage returns and overrides of the writing direction could change or forge other lines, and a
    surrogate (a byte of a file name that is not UTF-8) cannot be printed at all. An escaped text stays as it is.

    Args:
        keep: Characters to leave, such as a line feed in a text of several lines.
    """
    return _ACTING.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def json_line(value: Any) -> str:
    """A value as one line of JSON without characters that a terminal acts on; it reads back as the same value."""
    return _ACTING.sub(lambda found: json.dumps(found[0])[1:-1], json.dumps(value, ensure_ascii=False))


def echo(text: str, *, end: str = "\n", file: IO[str] | None = None) -> None:
    """Print a text at once. Line feeds and tabs act; all other control characters are shown as escapes.

    Args:
        file: None: standard output.
    """
    print(visible(text, keep="\n\t"), end=end, file=file, flush=True)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
