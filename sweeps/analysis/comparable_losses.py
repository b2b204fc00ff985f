"""Losses of as many trials as possible at an equal number of tokens.

With early stopping few trials reach the end, and those are the good ones: the effect of the settings, read from them
alone, is biased. A rung has the losses of all trials that reached it, whatever their outcome.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord

_SHARE_WANTED = 0.5
_FEWEST = 6


@dataclass(frozen=True)
class EqualProgress:
    """Losses at one point of training."""

    rung: int | None
    """Tokens; None: the end of training."""
    records: tuple[TrialRecord, ...]
    losses: tuple[float, ...]
    """In nats per predicted token, one per record; costs (TrialRecord.cost) where another metric ranks the trials."""

    @property
    def in_words(self) -> str:
        """The point of training, as a phrase."""
        return "at the end" if self.rung is None else f"at {self.rung:,} tokens"


def equal_progress(records: Sequence[TrialRecord]) -> EqualProgress:
    """The latest point that half of all trials reached, six at least; else the point of the most trials.

    Each setting counts once: repeats and twins are left out. Empty if no trial has a loss. Where another metric than
    the holdout loss ranks the trials, the point is the end, because records keep losses alone at rungs.
    """
    by_loss = all(record.ranked_by.is_loss for record in records)
    known = [record for record in records if not record.is_repeat and record.twin_of is None]
    points: dict[int | None, dict[int, float]] = {
        rung: {r.number: r.rung_losses[rung] for r in known if math.isfinite(r.rung_losses.get(rung, math.nan))}
        for rung in sorted({rung for record in known for rung in record.rung_losses} if by_loss else ())
    }
    points[None] = {
        record.number: record.cost
        for record in known
        if record.outcome is Outcome.COMPLETED and record.cost is not None and math.isfinite(record.cost)
    }
    everyone = {number for losses in points.values() for number in losses}
    enough = max(_SHARE_WANTED * len(everyone), min(_FEWEST, len(everyone)))
    late_first = list(reversed(points))
    rung = next((r for r in late_first if len(points[r]) >= enough), max(late_first, key=lambda r: len(points[r])))
    chosen = tuple(record for record in known if record.number in points[rung])
    return EqualProgress(rung, chosen, tuple(points[rung][record.number] for record in chosen))
