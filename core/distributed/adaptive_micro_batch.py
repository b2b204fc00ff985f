"""Adaptive micro-batch size: it shrinks after memory runs out, and grows back when memory is probably free again.

It is independent of models and memory; a callback predicts the smaller size.
"""

from collections.abc import Callable
from dataclasses import dataclass

from core.distributed.collective_attempt import attempt_together
from core.distributed.workers import Workers
from core.memory.memory_reports import OutOfMemoryEvent
from core.memory.out_of_memory import OomFacts

_STEPS_BEFORE_GROWING = 50
"""Clean steps before a retry of a size that failed because of another process; doubled after each failure."""


@dataclass(frozen=True, slots=True)
class Smaller:
    """New size of a micro-batch that ran out of memory."""

    size: int
    """Rows; at least 1 and below the size that ran out."""
    is_neighbours: bool
    """True: the run used less than its limit; another process held the memory and may free it."""


ChooseSmaller = Callable[[int, OomFacts], Smaller]
"""(size in rows that ran out of memory, facts) to the new size. Called on the worker that ran out."""


def half_of(size: int) -> int:
    """The largest power of two below a size of at least 2; used without a prediction."""
    return 1 << ((size - 1).bit_length() - 1)


class MicroBatchSize:
    """Micro-batch size in rows, always the same on all workers.

    Args:
        size: Initial size.
        choose_smaller: Chooses the size after memory runs out. None: the size never shrinks.
    """

    def __init__(self, size: int, workers: Workers, choose_smaller: ChooseSmaller | None) -> None:
        self.rows = size
        self._workers = workers
        self._choose_smaller = choose_smaller
        self._given_up: list[int] = []
        """Sizes that failed because of other processes; the newest and smallest is last."""
        self._clean_steps = 0
        self._wait_steps = _STEPS_BEFORE_GROWING
        self._has_grown = False
        """The current size is a retried one."""

    @property
    def shrinks(self) -> bool:
        """True if running out of memory shrinks the size."""
        return self._choose_smaller is not None

    @property
    def can_shrink(self) -> bool:
        """True if the size may shrink and is above one row."""
        return self._choose_smaller is not None and self.rows > 1

    def shrink(self, facts: OomFacts, *, step: int = 0) -> OutOfMemoryEvent | None:
        """Shrink the size after memory ran out. All workers call it with equal facts.

        Args:
            step: Optimizer steps taken before.

        Returns:
            The event, or None if the size cannot shrink.
        """
        if self._choose_smaller is None or self.rows == 1:
            return None
        tried, choose = self.rows, self._choose_smaller
        is_mine = facts.rank is None or facts.rank == self._workers.rank
        # The worker that ran out knows its own limit. If the prediction runs out of memory too, halve the size.
        mine = attempt_together(lambda: choose(tried, facts) if is_mine else None, self._workers, phase=facts.phase)
        everyone = [mine] if isinstance(mine, OomFacts) else self._workers.all_values(mine)
        smaller = next((value for value in everyone if isinstance(value, Smaller)), Smaller(half_of(tried), False))
        assert 1 <= smaller.size < tried, (smaller, tried)
        if self._has_grown and self._clean_steps < self._wait_steps:
            self._wait_steps *= 2
        # A size that exceeds the run's own limit also rules out all larger sizes.
        self._given_up = [*self._given_up, tried] if smaller.is_neighbours else []
        self.rows, self._clean_steps, self._has_grown = smaller.size, 0, False
        return OutOfMemoryEvent(facts, step, tried, smaller.size, smaller.is_neighbours)

    def note_clean_step(self) -> None:
        """Record a step that completed without running out of memory."""
        self._clean_steps += 1

    def grow_back(self) -> bool:
        """Return to a larger size if a retry is due, and say so with True. Call it before each step."""
        if not self._given_up or self._clean_steps < self._wait_steps:
            return False
        self.rows, self._clean_steps, self._has_grown = self._given_up.pop(), 0, True
        return True
