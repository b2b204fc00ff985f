"""Queue for a service that may become unavailable: a thread sends entries in order and retries until they succeed."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence

from data_pipeline.schema.user_errors import first_line

RETRY_S = 15.0
"""Pause before an unavailable service is tried again."""
PATIENT_S = 10.0
"""Pause between two sendings of an entry that can wait: everything new in between is sent together."""
GATHER_S = 1.0
"""Delay of urgent entries, so that entries right after them are sent together with them."""
_SILENT = "it does not answer"
MOST_AT_ONCE = 100
"""Maximum number of keys sent together."""


class Outbox:
    """Keys that are still to be sent; the send function knows the content behind a key.

    `put` never waits and never fails, so it does not hold up its caller.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Hashable]], None],
        *,
        answers: Callable[[], bool],
        say: Callable[[str], None],
        reason_to_wait: Callable[[Exception], str] = lambda _: "",
        retry_s: float = RETRY_S,
        patient_s: float = PATIENT_S,
        gather_s: float = GATHER_S,
    ) -> None:
        """Start the thread.

        Args:
            send: Sends the content of these keys. An exception means failure, perhaps after a part was sent; it is then
                called again, key by key if the service is available and so refuses one of them.
            answers: Returns quickly whether the service is available.
            say: Called once when the service becomes unavailable, and once when it is back.
            reason_to_wait: Returns why a failure will pass although the service answers (its disk is full, its database
                is locked); empty if the service refuses the content.
        """
        self._send, self._answers, self._say, self._reason_to_wait = send, answers, say, reason_to_wait
        self._retry_s, self._patient_s, self._gather_s = retry_s, patient_s, gather_s
        self._changed = threading.Condition()
        # A dict for its order: the keys that are due, each with the number of its last `put`.
        self._due: dict[Hashable, int] = {}
        self._refused: dict[Hashable, str] = {}
        self._not_before: dict[Hashable, float] = {}
        self._puts = 0
        self._is_closing = False
        self._away = ""
        """Why the service is unavailable; empty while it is not."""
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, key: Hashable, *, can_wait: bool = False) -> None:
        """Send the content of a key, after the entries that wait already.

        Args:
            can_wait: Keep a pause since this key was sent last, so that many small changes are sent together.
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
        """Send the remaining keys, and stop. An unavailable service is tried once more, then given up.

        Returns:
            The keys that could not be sent, with the reason.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        return dict.fromkeys(self._due, self._away or _SILENT) | self._refused

    def _work(self) -> None:
        while (due := self._next()) is not None:
            is_available = self._deliver(due)
            if not is_available and self._is_closing:
                return

    def _deliver(self, due: dict[Hashable, int]) -> bool:
        """Send keys, and note those that are refused; False if the service is unavailable."""
        try:
            self._send(list(due))
        except Exception as error:  # The caller of `put` cannot fix any failure and must not stop for it.
            why = self._reason_to_wait(error) or ("" if self._answers() else _SILENT)
            if why:
                self._note_away(why)
                return False
            if len(due) > 1:
                return all(self._deliver({key: put}) for key, put in due.items())
            self._not_taken(*due.popitem(), error)
        else:
            self._taken(due)
        if self._away:
            self._away = ""
            self._say("answers again; the missed records are being sent")
        return True

    def _note_away(self, why: str) -> None:
        if not self._away:
            words = why.removeprefix("it ") if why == _SILENT else f"takes no records ({why})"
            self._say(f"{words}; training continues, and missed records are sent when it answers again")
        self._away = why

    def _next(self) -> dict[Hashable, int] | None:
        """The keys to send now; waits for a key and for the service. None: nothing is left to do."""
        while True:
            with self._changed:
                while not (due := self._ready()):
                    if self._is_closing:
                        return None
                    self._changed.wait(self._until_ready())
                if not self._away:
                    return due
                self._changed.wait_for(lambda: self._is_closing, timeout=self._retry_s)
            if self._answers():
                return due
            if self._is_closing:
                return None

    def _ready(self) -> dict[Hashable, int]:
        """Keys that are due, together with those due very soon; empty if none is due."""
        due = self._due
        if not self._is_closing:
            now = time.monotonic()
            waits = {key: self._not_before.get(key, 0.0) - now for key in self._due}
            is_one_ready = any(wait <= 0 for wait in waits.values())
            due = {key: put for key, put in due.items() if is_one_ready and waits[key] <= self._gather_s}
        return dict(itertools.islice(due.items(), MOST_AT_ONCE))

    def _until_ready(self) -> float | None:
        """Seconds until the first key is due; None without keys."""
        now = time.monotonic()
        return min((max(0.0, self._not_before.get(key, 0.0) - now) for key in self._due), default=None)

    def _taken(self, due: dict[Hashable, int]) -> None:
        with self._changed:
            for key, put in due.items():
                self._not_before[key] = time.monotonic() + self._patient_s
                # A key that was put again during sending stays due.
                if self._due[key] == put:
                    del self._due[key]

    def _not_taken(self, key: Hashable, put: int, error: Exception) -> None:
        """Drop a key that the service refuses, so that it does not hold up the others."""
        with self._changed:
            if self._due[key] == put:
                del self._due[key]
                self._refused[key] = first_line(error)
