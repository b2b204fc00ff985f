"""Progress reports of corpus preparation."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PrepareProgress:
    """Progress of one phase."""

    phase: str
    """reading files, judging rows, training the tokenizer, tokenizing, or waiting for another preparation."""
    done: int
    total: int | None
    """None: not known in advance."""
    unit: str
    """Unit of `done` and `total`: bytes or s."""


OnProgress = Callable[[PrepareProgress], None]


class PhaseCounter:
    """Sums the work done in one phase and reports the sum."""

    def __init__(self, report: OnProgress, phase: str, *, total: int | None, unit: str) -> None:
        self._report, self._phase, self._total, self._unit = report, phase, total, unit
        self._done = 0
        self.add(0)

    def add(self, number: int) -> None:
        """Add completed work, in the unit of the phase, and report the sum."""
        self._done += number
        self._report(PrepareProgress(self._phase, self._done, self._total, self._unit))
