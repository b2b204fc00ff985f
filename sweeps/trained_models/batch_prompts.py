"""Many prompts for one model: the texts of a file, answered as JSON lines, or typed lines until ctrl-d."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_pipeline.files.own_files import fresh
from data_pipeline.reading.table_rows import open_table, table_rows
from data_pipeline.schema.rejects import Reject
from data_pipeline.schema.terminal_text import echo, json_line
from data_pipeline.schema.user_errors import InputFault

Answer = Callable[[str], dict[str, Any]]
"""A text to its answer; raises InputFault if there is none."""


def answer_file(
    source: str, target: Path | None, answer: Answer, *, text: str | None, say: Callable[[str], None]
) -> int:
    """Write a JSON line for every row of a table or of plain text: `row` (from 0), `text`, and the answer or `error`.

    Each line is written as soon as its row is answered or fails.

    Args:
        source: File, folder or glob.
        target: File to write, whole or not at all; None: standard output, line by line.
        text: Column of the texts. None: found by its name.
        say: Gets the number of rows with an error at the end, if there are any.

    Returns:
        Number of rows with an error.
    """
    num_errors = 0
    rejects: list[Reject] = []
    table = open_table(source, text=text)
    with _written(target) as file:

        def write(entry: dict[str, Any]) -> None:
            echo(json_line(entry), file=file)

        for row in table_rows(table, on_reject=rejects.append):
            entry: dict[str, Any] = {"row": row.number, "text": row.text}
            try:
                write(entry | answer(row.text))
            except InputFault as fault:
                num_errors += 1
                write(entry | {"error": str(fault)})
        for reject in rejects:
            write({"file": reject.file, "line": reject.line, "error": reject.reason.value})
    num_errors += len(rejects)
    if num_errors:
        say(f"{num_errors:,} rows have no answer; their lines hold the reason under `error`")
    return num_errors


def answer_typed(prompt: str, show: Callable[[str], None], *, say: Callable[[str], None]) -> None:
    """Show the answer to each typed line, until the end of input (ctrl-d).

    Args:
        show: Prints the answer to a text. Its InputFault is printed, and the loop continues.
    """
    import readline  # noqa: F401  # Gives `input` line editing and history.

    while True:
        try:
            text = input(prompt)
        except EOFError:
            say("")
            return
        if not text.strip():
            continue
        try:
            show(text)
        except InputFault as fault:
            say(str(fault))


def is_typed() -> bool:
    """Whether input and output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


@contextmanager
def _written(target: Path | None) -> Iterator[IO[str] | None]:
    """The file to write; None for standard output."""
    if target is None:
        yield None
        return
    partial = target.with_name(f".{target.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8", opener=fresh) as file:
            yield file
        partial.replace(target)
    except OSError as error:
        raise InputFault(f"--output {target} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
