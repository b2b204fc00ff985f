"""Trunk and branch: promotion of paused trials past a rung.

Every trial pauses at a rung and is judged by a branch that cools down there (core.settings.cooldown_branch). The best
1/factor of the trials at a rung are promoted, at once or after more results; a promoted trial continues from its trunk.
The rule has no state: it decides from the records, so a resumed sweep decides as an uninterrupted one.

Source: asynchronous successive halving, Li et al., arXiv:1810.05934, which promotes as here; Ray's ASHA stops instead.
One addition: the leader of a rung is promoted even if few trials are there. The informed first points then give a
finished model at once, not after factor**rungs trials. Of n trials in random order about ln n lead at some time, and
most of those would be promoted anyway.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from core.settings.cooldown_branch import Pause
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.sweep_sections import EarlyStoppingConfig

FEWEST_FINALISTS = 2
"""Least promotions from each rung at the end of a sweep: a winner needs a runner-up."""


@dataclass(frozen=True)
class Promotions:
    """The rule of promotion past a rung."""

    rungs: tuple[int, ...]
    """Tokens, ascending."""
    factor: int
    num_trials: int
    """Most trials of the search, an upper bound of the trials at a rung."""

    def pause_of(self, record: TrialRecord, *, cooldown: float) -> Pause | None:
        """The next pause of a trial; None after the last rung.

        Args:
            cooldown: Cooldown of the trial's run: the branch takes that share of the rung's tokens.
        """
        rung = next((rung for rung in self.rungs if rung not in record.rung_losses), None)
        # Repeats compare at their end.
        return None if rung is None or record.is_repeat else Pause(rung, round(cooldown * rung))

    def next(self, records: Iterable[TrialRecord], *, is_closing: bool) -> TrialRecord | None:
        """The paused trial to promote now; None if there is none yet.

        Args:
            is_closing: No new trials will start. Once no running trial can reach a rung, its best are promoted even if
                fewer than `factor` are there.
        """
        known = list(records)
        for rung in reversed(self.rungs):
            waiting = [r for r in known if r.paused_at == rung and math.isfinite(r.rung_losses[rung])]
            drawn = next((record for record in waiting if record.run_to_end), None)
            if drawn is not None:
                return drawn
            best = min(waiting, key=partial(_order, rung), default=None)
            if best is not None:
                # Counted, not sorted: every pause and end asks this.
                seen = list(self._seen(known, rung))
                num_ahead = sum(_order(rung, record) < _order(rung, best) for record in seen)
                if num_ahead < self._num_promoted(len(seen), rung):
                    return best
        for rung in self.rungs if is_closing else ():
            if any(_is_on_its_way(record, rung) for record in known):
                return None
            found = _first_waiting(self._ranked(known, rung)[:FEWEST_FINALISTS], rung)
            if found is not None:
                return found
        return None

    def beaten(self, records: Iterable[TrialRecord]) -> Iterator[tuple[TrialRecord, str]]:
        """Paused trials that can never be promoted, each with the reason; their checkpoints can be deleted."""
        known = list(records)
        most = max(self.num_trials // self.factor, FEWEST_FINALISTS)
        best = {rung: {record.number for record in self._ranked(known, rung)[:most]} for rung in self.rungs}
        for record in known:
            rung = record.paused_at
            if rung is None:
                continue
            is_finite = math.isfinite(record.rung_losses[rung])
            if not is_finite or (record.number not in best[rung] and not record.run_to_end):
                yield record, self.reason(record, known)

    def reason(self, record: TrialRecord, records: Iterable[TrialRecord]) -> str:
        """The reason why a paused trial is not promoted, with the numbers."""
        rung = record.paused_at
        assert rung is not None, "only paused trials wait for promotion"
        loss = record.rung_losses[rung]
        if not math.isfinite(loss):
            return f"loss {loss} of the branch at {rung:,} tokens is not finite; the trial stops"
        ranked = self._ranked(records, rung)
        num_promoted = min(max(len(ranked) // self.factor, FEWEST_FINALISTS), len(ranked))
        cutoff = ranked[num_promoted - 1].rung_losses[rung]
        if any(record.number == one.number for one in ranked[:num_promoted]):
            return (
                f"loss {loss:.4f} of the branch at {rung:,} tokens; the rest of the budget is too small to continue "
                "the trial"
            )
        return (
            f"loss {loss:.4f} of the branch at {rung:,} tokens is not among the best {num_promoted} of {len(ranked)} "
            f"trials there ({cutoff:.4f} or less)"
        )

    def _num_promoted(self, num_seen: int, rung: int) -> int:
        # A leader needs a second trial. Past the first rung all trials were leaders or among the best.
        leaders = 1 if num_seen > 1 or rung != self.rungs[0] else 0
        return max(num_seen // self.factor, leaders)

    def _seen(self, records: Iterable[TrialRecord], rung: int) -> Iterator[TrialRecord]:
        """Trials at a rung.

        Trials drawn to run to the end reach higher rungs without promotion, so they compete at the first rung only.
        """
        return (
            record
            for record in records
            if rung in record.rung_losses
            and record.twin_of is None
            and (rung == self.rungs[0] or not record.run_to_end)
        )

    def _ranked(self, records: Iterable[TrialRecord], rung: int) -> list[TrialRecord]:
        """Trials at a rung, best first."""
        return sorted(self._seen(records, rung), key=partial(_order, rung))


def _order(rung: int, record: TrialRecord) -> tuple[float, int]:
    loss = record.rung_losses[rung]
    return (loss if math.isfinite(loss) else math.inf, record.number)


def _first_waiting(records: Iterable[TrialRecord], rung: int) -> TrialRecord | None:
    waiting = (r for r in records if r.paused_at == rung and math.isfinite(r.rung_losses[rung]))
    return next(waiting, None)


def _is_on_its_way(record: TrialRecord, rung: int) -> bool:
    """Whether a trial runs and may still reach a rung."""
    is_running = record.outcome is None and record.paused_at is None and record.twin_of is None
    return is_running and rung not in record.rung_losses and not record.is_repeat


def drawn_to_run_to_the_end(config: EarlyStoppingConfig, *, num_trials: int, seed: int) -> frozenset[int]:
    """Numbers of trials that train to the end whatever their losses at rungs.

    They are drawn before the first trial, so their rung losses and final losses are an unbiased sample.
    """
    wanted = num_trials // 10 if config.run_to_end == "auto" else config.run_to_end
    if config.method in ("none", "full-length"):  # What full-length trains to the end is its own choice.
        return frozenset()
    numbers: Sequence[int] = range(1, num_trials + 1)
    return frozenset(random.Random(f"run to the end {seed}").sample(numbers, min(wanted, num_trials)))
