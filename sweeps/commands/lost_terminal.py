"""A command without a reader: one that works continues, with the rest of its output in a log; one that prints ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from data_pipeline.files.own_files import no_link
from data_pipeline.schema.user_errors import InputFault

OUTPUT_LOG = "output.log"
"""File in the results folder."""


@contextmanager
def outlives_its_terminal(results_folder: Path) -> Iterator[None]:
    """Let no error of standard output or standard error end the block.

    A reader that ended (`| head`), a lost connection and a full disk are such errors. From then on the output is
    appended to output.log, the text that met the error first. Where that fails too, the output is dropped.
    """
    before = {name: stream for name in ("stdout", "stderr") if _has_descriptor(stream := getattr(sys, name))}
    streams = {name: _Outliving(stream, log=results_folder / OUTPUT_LOG) for name, stream in before.items()}
    for name, stream in streams.items():
        stream.others = [one for one in streams.values() if one is not stream]
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(sys, name, original)


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """End the block, with exit code 0 and without a word, once nobody reads its output any more (`| head`)."""
    stream = sys.stdout
    if not _has_descriptor(stream):
        yield
        return
    sys.stdout = _Ending(stream)
    try:
        yield
    finally:
        sys.stdout = stream
        try:
            stream.flush()
        except BrokenPipeError:
            _drop(stream)  # The interpreter flushes it once more, and an error there would change the exit code.


def open_closed_streams() -> None:
    """Drop the output of a process that was started with a closed stream (`>&-`), which Python gives as None.

    The next file that is opened would have the number of the stream, and libraries write to that number.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))


class _Ending:
    """A text stream that ends the process at its first write without a reader."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._ends():
            return self.stream.write(text)

    def flush(self) -> None:
        with self._ends():
            self.stream.flush()

    @contextmanager
    def _ends(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            _drop(self.stream)
            raise SystemExit(0) from None


class _Outliving:
    """A text stream whose descriptor is given to a log after its first error."""

    def __init__(self, stream: TextIO, *, log: Path) -> None:
        self._stream, self._log = stream.stream if isinstance(stream, _Ending) else stream, log
        self._unflushed: list[str] = []
        self.others: list[_Outliving] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._unflushed.append(text)
        try:
            self._stream.write(text)
        except OSError:
            self._continue_in_log()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._continue_in_log()
        self._unflushed.clear()

    def _continue_in_log(self) -> None:
        # Standard error on the same terminal is lost as well, and the command writes there at its end.
        lost = [self, *(one for one in self.others if os.path.sameopenfile(one.fileno(), self.fileno()))]
        for path, opener in ((self._log, no_link), (Path(os.devnull), None)):
            with suppress(OSError, InputFault), open(path, "ab", opener=opener) as log:
                log.write(f"process {os.getpid()}: its terminal is gone; the output continues here\n".encode())
                log.flush()
                for one in lost:
                    one.go_on_at(log.fileno())
                return

    def go_on_at(self, descriptor: int) -> None:
        """Write the text that was not flushed, and all later text, to another file."""
        # Whether the buffer still holds the text depends on its kind, so the buffer is emptied first.
        _drop(self._stream)
        self._stream.flush()
        os.dup2(descriptor, self.fileno())
        self._stream.write("".join(self._unflushed))
        self._stream.flush()
        self._unflushed.clear()


def _drop(stream: TextIO) -> None:
    """Send the buffered and all later output of a stream nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _has_descriptor(stream: TextIO | None) -> bool:
    """Whether the stream is one of the process; tests and notebooks put others in place."""
    try:
        return stream is not None and stream.fileno() >= 0
    except (OSError, ValueError):
        return False
