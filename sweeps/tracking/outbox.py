"""Things to send to a service that may go away: sent in order by a thread of their own, tried again until taken."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence

from data_pipeline.schema.user_errors import first_line

RETRY_S = 15.0
"""Pause before a service that went away is asked again."""
PATIENT_S = 10.0
"""Pause between two sendings of what can wait: it then goes in one."""
GATHER_S = 1.0
"""Wait of what cannot wait for what comes right after it: it goes along."""
MOST_AT_ONCE = 100
"""Keys sent together."""


class Outbox:
    """What is still to be sent, as keys; what a key stands for is known by the one who sends it.

    Putting a key never waits and never fails, so that whoever has something to tell is not held up.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Hashable]], None],
        *,
        answers: Callable[[], bool],
        say: Callable[[str], None],
        retry_s: float = RETRY_S,
        patient_s: float = PATIENT_S,
        gather_s: float = GATHER_S,
    ) -> None:
        """Start the thread.

        Args:
            send: Sends all that these keys stand for. An exception means: not taken. Called again then, for one key
                after the other where the service is there and so refuses one of them, and it may be that a part was
                taken.
            answers: Whether the service is there at all; quick.
            say: Told once when the service goes away, and once when it is back.
        """
        self._send, self._answers, self._say = send, answers, say
        self._retry_s, self._patient_s, self._gather_s = retry_s, patient_s, gather_s
        self._changed = threading.Condition()
        # A dict for its order: the keys that are due, each with the number of its last `put`.
        self._due: dict[Hashable, int] = {}
        self._refused: dict[Hashable, str] = {}
        self._not_before: dict[Hashable, float] = {}
        self._puts = 0
        self._is_away = self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, key: Hashable, *, can_wait: bool = False) -> None:
        """Have this sent, after what is waiting already.

        Args:
            can_wait: Not so soon after this key was sent last, so that many small things go in one.
        """
        with self._changed:
            if not can_wait:
                before = self._not_before.get(key, 0.0) if key in self._due else math.inf
                self._not_before[key] = min(before, time.monotonic() + self._gather_s)
            self._puts += 1
            self._due[key] = self._puts
            self._refused.pop(key, None)
            self._changed.notify_all()

    def close(self) -> dict[Hashable, str]:
        """Send what can be sent, and stop. A service that is away is asked once more, then no longer waited for.

        Returns:
            What was not taken, with the reason.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        return dict.fromkeys(self._due, "it does not answer") | self._refused

    def _work(self) -> None:
        while (due := self._next()) is not None:
            self._deliver(due)

    def _deliver(self, due: dict[Hashable, int]) -> None:
        try:
            self._send(list(due))
        except Exception as error:  # Whatever it is, the one who put the keys cannot mend it, and must continue.
            if not self._answers():
                self._is_away = True
                self._say("does not answer; the work continues, and what it misses is sent when it is back")
            elif len(due) == 1:
                self._not_taken(*due.popitem(), error)
            else:
                for key, put in due.items():
                    if not self._is_away:
                        self._deliver({key: put})
        else:
            self._taken(due)

    def _next(self) -> dict[Hashable, int] | None:
        """The keys to send now; waits for one, and for the service. None: there is nothing more to do."""
        while True:
            with self._changed:
                while not (due := self._ready()):
                    if self._is_closing:
                        return None
                    self._changed.wait(self._until_ready())
                if not self._is_away:
                    return due
                self._changed.wait_for(lambda: self._is_closing, timeout=self._retry_s)
            if self._answers():
                self._is_away = False
                self._say("answers again; it gets what it missed")
            elif self._is_closing:
                return None

    def _ready(self) -> dict[Hashable, int]:
        """What is due, and with it what is so soon; empty: nothing is due."""
        due = self._due
        if not self._is_closing:
            now = time.monotonic()
            waits = {key: self._not_before.get(key, 0.0) - now for key in self._due}
            is_one_ready = any(wait <= 0 for wait in waits.values())
            due = {key: put for key, put in due.items() if is_one_ready and waits[key] <= self._gather_s}
        return dict(itertools.islice(due.items(), MOST_AT_ONCE))

    def _until_ready(self) -> float | None:
        """Seconds until the first of what is due may go; None: nothing is due."""
        now = time.monotonic()
        return min((max(0.0, self._not_before.get(key, 0.0) - now) for key in self._due), default=None)

    def _taken(self, due: dict[Hashable, int]) -> None:
        with self._changed:
            for key, put in due.items():
                self._not_before[key] = time.monotonic() + self._patient_s
                # Put again while it was being sent: it stays due.
                if self._due[key] == put:
                    del self._due[key]

    def _not_taken(self, key: Hashable, put: int, error: Exception) -> None:
        """The service is there and refuses this one: it must not hold up the others."""
        with self._changed:
            if self._due[key] == put:
                del self._due[key]
                self._refused[key] = first_line(error)
