"""How far preparation is, for whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PrepareProgress:
    """How far one phase is."""

    phase: str
    """reading files, judging rows, training the tokenizer, tokenizing, waiting for another preparation."""
    done: int
    total: int | None
    """None: not known beforehand."""
    unit: str


OnProgress = Callable[[PrepareProgress], None]


class PhaseCounter:
    """Adds up what is done in one phase and reports it."""

    def __init__(self, report: OnProgress, phase: str, *, total: int | None, unit: str) -> None:
        self._report, self._phase, self._total, self._unit = report, phase, total, unit
        self._done = 0
        self.add(0)

    def add(self, number: int) -> None:
        """So much more is done."""
        self._done += number
        self._report(PrepareProgress(self._phase, self._done, self._total, self._unit))
