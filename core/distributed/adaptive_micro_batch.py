"""The rows that go through the model at once: fewer after memory ran out, more again when it is likely to be back.

Knows no model and no memory: what to shrink to is somebody else's prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass

from core.distributed.collective_attempt import attempt_together
from core.distributed.workers import Workers
from core.memory.memory_reports import OutOfMemoryEvent
from core.memory.out_of_memory import OomFacts

_STEPS_BEFORE_GROWING = 50
"""Clean steps before a size that a neighbour had made impossible is tried again; twice as many after each failure."""


@dataclass(frozen=True, slots=True)
class Smaller:
    """What a micro-batch that ran out of memory is to shrink to."""

    size: int
    """Rows; at least 1 and fewer than ran out."""
    is_neighbours: bool
    """The run had not used what it may use: somebody else had it, and may give it back."""


ChooseSmaller = Callable[[int, OomFacts], Smaller]
"""(rows that ran out, what is known of it) to what they shrink to. Asked on the worker that ran out."""


def half_of(size: int) -> int:
    """The largest power of two below a size of at least 2: for what nobody can predict."""
    return 1 << ((size - 1).bit_length() - 1)


class MicroBatchSize:
    """Rows of one forward/backward on one worker, the same on all of them at all times.

    Args:
        size: To begin with.
        choose_smaller: None: a size that runs out is not shrunk.
    """

    def __init__(self, size: int, workers: Workers, choose_smaller: ChooseSmaller | None) -> None:
        self.rows = size
        self._workers = workers
        self._choose_smaller = choose_smaller
        self._given_up: list[int] = []
        """Sizes that neighbours made impossible, the last and smallest at the end."""
        self._clean_steps = 0
        self._wait_steps = _STEPS_BEFORE_GROWING
        self._has_grown = False
        """The present size is one that was given up once."""

    @property
    def shrinks(self) -> bool:
        """Whether it goes on with fewer rows after running out of memory, if there are any."""
        return self._choose_smaller is not None

    @property
    def can_shrink(self) -> bool:
        """Whether there are fewer rows to go on with."""
        return self._choose_smaller is not None and self.rows > 1

    def shrink(self, facts: OomFacts, *, step: int = 0) -> OutOfMemoryEvent | None:
        """After a shortage: go on with fewer rows; None where there are none. All workers call it with equal facts.

        Args:
            step: Optimizer steps taken before.
        """
        if self._choose_smaller is None or self.rows == 1:
            return None
        tried, choose = self.rows, self._choose_smaller
        is_mine = facts.rank is None or facts.rank == self._workers.rank
        # The worker that ran out knows its own limit. Should the prediction run out as well, half must do.
        mine = attempt_together(lambda: choose(tried, facts) if is_mine else None, self._workers, phase=facts.phase)
        everyone = [mine] if isinstance(mine, OomFacts) else self._workers.all_values(mine)
        smaller = next((value for value in everyone if isinstance(value, Smaller)), Smaller(half_of(tried), False))
        assert 1 <= smaller.size < tried, (smaller, tried)
        if self._has_grown and self._clean_steps < self._wait_steps:
            self._wait_steps *= 2
        # A size that is too much for the run itself rules out those above it.
        self._given_up = [*self._given_up, tried] if smaller.is_neighbours else []
        self.rows, self._clean_steps, self._has_grown = smaller.size, 0, False
        return OutOfMemoryEvent(facts, step, tried, smaller.size, smaller.is_neighbours)

    def note_clean_step(self) -> None:
        """A step came to its end."""
        self._clean_steps += 1

    def grow_back(self) -> bool:
        """Before a step: try more rows again, if it is time to; whether it is."""
        if not self._given_up or self._clean_steps < self._wait_steps:
            return False
        self.rows, self._clean_steps, self._has_grown = self._given_up.pop(), 0, True
        return True
