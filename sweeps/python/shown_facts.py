"""Facts as a dictionary that shows itself as the commands print it."""

import html
import io
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console

from sweeps.commands.terminal import Terminal

_WIDTH = 120


class ShownFacts(dict[str, Any]):
    """The contents of a command's `--json`; printed, and at the end of a notebook's cell, its text."""

    def __init__(self, values: dict[str, Any], text: str) -> None:
        super().__init__(values)
        self.text = text

    @classmethod
    def of(cls, values: dict[str, Any], show: Callable[[Console], None]) -> Self:
        """Facts with the text that `show` prints."""
        written = io.StringIO()
        show(Terminal(file=written, width=_WIDTH, is_plain=True))
        return cls(values, written.getvalue())

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return preformatted(self.text)


def preformatted(text: str) -> str:
    """A text as a notebook shows it, without wrapping."""
    return f'<pre style="white-space: pre; overflow-x: auto; line-height: 1.35">{html.escape(text)}</pre>'
