"""Work that is done again and again, and takes the longer the more there is: a bounded share of the time goes to it."""

import time
from collections.abc import Callable

_TIMES_AS_LONG = 60


class Pace:
    """Says when it is time to do a thing again: so much later than it took last time, whatever happened meanwhile.

    What a sweep writes whole, its table, its report, grows with its trials. Written at each trial's end it would cost a
    thousand trials a thousand times as much as one that has seen them all.

    Args:
        times_as_long: Pause in units of what the last time took; 60: less than 2 % of one core.
        clock: Seconds that only grow.
    """

    def __init__(self, *, times_as_long: float = _TIMES_AS_LONG, clock: Callable[[], float] = time.monotonic) -> None:
        self._times_as_long, self._clock = times_as_long, clock
        self._due_at = -float("inf")

    def is_due(self) -> bool:
        """Whether it is time; at first it is."""
        return self._clock() >= self._due_at

    def start(self) -> Callable[[], None]:
        """It begins now; call what this returns when it is done."""
        started_at = self._clock()

        def done() -> None:
            now = self._clock()
            self._due_at = now + self._times_as_long * (now - started_at)

        return done
