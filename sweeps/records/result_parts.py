"""Parts of the results, each guarded: a part that fails is named in its place, and all others are written."""

import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data_pipeline.files.own_files import no_link
from data_pipeline.schema.redaction import redact
from data_pipeline.schema.user_errors import InputFault, first_line

ERRORS_FILE = "errors.log"
"""Tracebacks of the parts that failed, in the folder of the results."""
_NO_BUGS = (OSError, MemoryError, InputFault)
"""Errors whose cause lies outside pretune: the machine, or an input."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class FailedPart:
    """A part of the results that could not be made."""

    name: str
    words: str
    """The error, and what to do."""

    def __str__(self) -> str:
        return f"{self.name} could not be made: {self.words}"


class ResultParts:
    """Makes the parts of the results in one folder, and knows those that failed."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / ERRORS_FILE
        self.failed: list[FailedPart] = []

    def make(self, name: str, make: Callable[[], Part], otherwise: Callable[[FailedPart], Part]) -> Part:
        """What `make` returns. If it fails: the failure is noted under the name, and `otherwise` takes its place."""
        try:
            return make()
        except Exception as error:
            return otherwise(self.note(name, error))

    def attempt(self, name: str, make: Callable[[], None]) -> None:
        """Make a part that is a file or another effect; a failure is noted under the name."""
        self.make(name, make, lambda _: None)

    def note(self, name: str, error: Exception) -> FailedPart:
        """Note the failure of a part; its traceback goes to the log."""
        words = f"{type(error).__name__}: {first_line(error)}"
        with suppress(OSError), open(self._log, "a", encoding="utf-8", opener=no_link) as file:
            file.write(redact(f"{name}\n{''.join(traceback.format_exception(error))}\n"))
        if not isinstance(error, _NO_BUGS):
            words += f" (a bug in pretune: please report it with {self._log})"
        failed = FailedPart(name, words)
        self.failed.append(failed)
        return failed
