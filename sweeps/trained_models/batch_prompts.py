"""Asking a model many things: the texts of a file, answered into JSON lines, or what somebody types, until ctrl-d."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_pipeline.reading.table_rows import open_table, table_rows
from data_pipeline.schema.rejects import Reject
from data_pipeline.schema.user_errors import InputFault

Answer = Callable[[str], dict[str, Any]]
"""A text to what is to be said of it; raises InputFault where it cannot be."""


def answer_file(
    source: str, target: Path | None, answer: Answer, *, text: str | None, say: Callable[[str], None]
) -> int:
    """A JSON line for every row of a table or lines of plain text: `row` (from 0), `text`, and the answer or `error`.

    Every row has a line as soon as it is answered, those that cannot be answered too.

    Args:
        source: File, folder or glob.
        target: File to write, whole or not at all; None: the standard output, as answers come.
        text: Column of the texts. None: told by its name.
        say: Told in the end how many rows have an error, if any has.

    Returns:
        How many rows have one.
    """
    num_errors = 0
    rejects: list[Reject] = []
    table = open_table(source, text=text)
    with _written(target) as file:

        def write(entry: dict[str, Any]) -> None:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()

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
        say(f"{num_errors:,} rows have no answer; their lines say why under `error`")
    return num_errors


def answer_typed(prompt: str, show: Callable[[str], None], *, say: Callable[[str], None]) -> None:
    """Show the answer to each line that is typed, until the end of input (ctrl-d).

    Args:
        show: Prints the answer to a text; raises InputFault where there is none, which is said and ends nothing.
    """
    import readline  # noqa: F401  # gives `input` its line editing and history

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
    """Whether somebody sits at the other end."""
    return sys.stdin.isatty() and sys.stdout.isatty()


@contextmanager
def _written(target: Path | None) -> Iterator[IO[str]]:
    if target is None:
        yield sys.stdout
        return
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(target)
    except OSError as error:
        raise InputFault(f"--output {target} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
