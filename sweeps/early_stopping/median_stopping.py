"""The median rule: a trial stops when its best loss is above the median of the others' average losses.

Source: Golovin et al., Google Vizier, KDD 2017, 3.2.1. Ray's MedianStoppingRule cannot be rebuilt from records.
"""

import math
import statistics
from collections.abc import Iterable, Sequence

from sweeps.early_stopping.rungs import RungDecision
from sweeps.records.trial_records import TrialRecord

_FEWEST_OTHERS = 3
"""Other trials below which no trial stops: their median is chance."""


class MedianRule:
    """Losses at each rung, and the rule that stops trials."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tuple(tokens)
        self._losses: dict[int, dict[int, float]] = {}
        """Trial to rung to loss."""

    def restore(self, records: Iterable[TrialRecord]) -> None:
        """Restore the losses at rungs from records."""
        for record in records:
            for rung, loss in record.rung_losses.items():
                self._losses.setdefault(record.number, {})[rung] = loss

    def reached(self, trial: int, tokens: float) -> int | None:
        """The highest rung that a trial reaches for the first time; None if there is none."""
        seen = self._losses.get(trial, {})
        return max((rung for rung in self.tokens if tokens >= rung and rung not in seen), default=None)

    def judge(self, trial: int, rung: int, loss: float) -> RungDecision:
        """Record a trial's loss at a rung and compare its best loss with the median of the others' averages."""
        mine = self._losses.setdefault(trial, {})
        mine[rung] = loss
        if not math.isfinite(loss):
            return RungDecision(False, f"loss {loss} at {rung:,} tokens is not finite; the trial stops")
        averages = [
            statistics.fmean(value for at, value in losses.items() if at <= rung)
            for other, losses in self._losses.items()
            if other != trial and rung in losses
        ]
        finite = [average for average in averages if math.isfinite(average)]
        if len(finite) < _FEWEST_OTHERS:
            return RungDecision(True, "")
        median, best = statistics.median(finite), min(value for value in mine.values() if math.isfinite(value))
        if best <= median:
            return RungDecision(True, "")
        return RungDecision(
            False,
            f"best loss {best:.4f} up to {rung:,} tokens is above {median:.4f}, the median of the average losses of "
            f"{len(finite)} other trials up to there",
        )
