"""Effect of Ctrl-C, of a cluster's SIGTERM and of a lost terminal's SIGHUP on a sweep, and blocks that ignore them."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a sweep as Ctrl-C does: a cluster ends the job, a terminal or its connection is closed."""


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does. A SIGHUP that `nohup` ignores stays ignored.

    Python sets signals in its main thread alone; in others nothing changes.
    """

    def interrupt(_signal: int, _frame: Any) -> None:
        # A closed terminal sends two. After the first the results are written, so the process ignores all later ones.
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        before.clear()
        raise KeyboardInterrupt

    heard = [number for number in _settable(ENDING) if not _is_ignored_hangup(number)]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C, SIGTERM and SIGHUP in the block: writing the results takes seconds."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _settable((signal.SIGINT, *ENDING))}
    try:
        yield
    finally:
        _restore(before)


def _settable(numbers: Sequence[signal.Signals]) -> Sequence[signal.Signals]:
    return numbers if threading.current_thread() is threading.main_thread() else ()


def _is_ignored_hangup(number: signal.Signals) -> bool:
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
