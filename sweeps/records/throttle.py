"""Limits a repeated job of growing cost to a bounded share of the time."""

import time
from collections.abc import Callable

_TIMES_AS_LONG = 60


class Pace:
    """Decides when a repeated job is due again: after a pause proportional to its last duration.

    A sweep rewrites its table and report whole, and both grow with the number of trials. A rewrite at the end of each
    trial would make their total cost quadratic.

    Args:
        times_as_long: Pause, in units of the last duration; 60 means less than 2 % of one core.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, *, times_as_long: float = _TIMES_AS_LONG, clock: Callable[[], float] = time.monotonic) -> None:
        self._times_as_long, self._clock = times_as_long, clock
        self._due_at = -float("inf")

    def is_due(self) -> bool:
        """Whether the job is due; true before the first start."""
        return self._clock() >= self._due_at

    def start(self) -> Callable[[], None]:
        """Mark the start of the job; returns a function to call at its end."""
        started_at = self._clock()

        def done() -> None:
            now = self._clock()
            self._due_at = now + self._times_as_long * (now - started_at)

        return done
