"""The console of all commands: texts are printed as they are, without markup, their control characters as escapes."""

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from data_pipeline.schema.terminal_text import visible


class Terminal(Console):
    """A rich console for texts that others wrote: file names, labels, settings, errors, the output of models.

    Square brackets are no markup and colons no emoji. One string is one line: a line feed in it is shown as `\\n`, so
    that a name cannot forge a line of its own.
    """

    def __init__(
        self, *, file: IO[str] | None = None, stderr: bool = False, width: int | None = None, is_plain: bool = False
    ) -> None:
        """
        Args:
            is_plain: The output is a text to be kept, without colours whatever the environment asks for.
        """
        # A notebook shows plain text too; rich would show each line as a page of its own.
        super().__init__(
            file=file,
            stderr=stderr,
            width=width,
            markup=False,
            emoji=False,
            force_jupyter=False,
            force_terminal=False if is_plain else None,
        )

    def on_broken_pipe(self) -> None:
        """Drop the rest of an output without a reader; rich would end the command with exit code 1."""
        self.quiet = True

    def render_str(self, text: str, **how: Any) -> Text:
        # Every string passes here before it is measured, also the cells of tables.
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # What rich composes itself, a styled `Text` for instance, passes here. Control segments are rich's own.
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text, keep="\n"), segment.style)
