"""The used part of a sweep's budget, and whether one more trial may start."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.sweep_sections import BudgetConfig

WALL_CLOCK_USED_UP = "budget.wall_clock was used up"
"""Reason of the trials that the wall-clock limit stopped."""

_SHARE_FOR_REPEATS = 0.15
"""Share of a limit reserved for repeats at most, if the sweep has any: a small budget is for the search."""

MayStart = Literal["yes", "not yet", "no"]
"""Whether the budget lets one more trial start; `not yet`: while others run that may need the rest."""


@dataclass(frozen=True)
class SweepBudget:
    """The limits of one sweep, and their use so far.

    The sweep ends when any limit is reached. Tokens and operations are never exceeded: a trial starts only if all
    running trials can also take their full tokens, so they always reach their end. At the end of the wall-clock running
    trials stop at their next report.
    """

    limits: BudgetConfig
    elapsed_s: Callable[[], float]
    """Seconds of the sweep, summed over resumptions."""
    num_repeats: int = 0
    """Trials reserved for repeats after the search."""
    keeps_repeats: bool = True
    """Whether tokens and operations are kept for all of them; else at most a share, and the search gets the rest."""

    def may_start_trial(self, records: Iterable[TrialRecord], *, num_waiting: int = 0) -> tuple[MayStart, str]:
        """Whether one more trial of the search may start; if not, the limit that is reached, in words.

        Args:
            num_waiting: Trials that will start later in any case.
        """
        known = list(records)
        # An infeasible trial does not count as a trial; its tokens and seconds count as spent.
        fitting = [record for record in known if record.outcome is not Outcome.INFEASIBLE]
        searched = sum(not record.is_repeat for record in fitting)
        if searched + num_waiting >= self.limits.trials:
            # Beside those of the budget, a widened space has trials of its own.
            return "no", f"all {searched + max(0, num_waiting)} trials of the budget"
        return self._may_start(known, kept=max(0, self.num_repeats - (len(fitting) - searched)))

    def may_start_repeat(self, records: Iterable[TrialRecord]) -> tuple[MayStart, str]:
        """Whether one more repeat may start; if not, the limit that is reached, in words."""
        return self._may_start(list(records), kept=0)

    def may_promote(self, records: Iterable[TrialRecord], promoted: TrialRecord) -> bool:
        """Whether a paused trial may continue to its end beside the running ones."""
        if not self._counts_work():
            return not self.is_over()
        known = list(records)
        running = [r for r in known if not r.ended_at and r.paused_at is None and r.twin_of is None]
        in_flight = [*running, promoted]
        left = {record.number: max(0, self.limits.trial_tokens - record.tokens) for record in in_flight}
        flops = sum(left[record.number] * (record.flops_per_token or 0.0) for record in in_flight)
        tokens = self.tokens(known) + sum(left.values())
        return (
            not self.is_over()
            and (self.limits.tokens is None or tokens <= self.limits.tokens)
            and (self.limits.flops is None or self.flops(known) + flops <= self.limits.flops)
        )

    def is_over(self) -> bool:
        """Whether running trials must stop because the wall-clock is used up."""
        return self.limits.wall_clock_s is not None and self.elapsed_s() >= self.limits.wall_clock_s

    def tokens(self, records: Iterable[TrialRecord]) -> int:
        """Tokens trained so far."""
        return sum(record.tokens_spent for record in records)

    def flops(self, records: Iterable[TrialRecord]) -> float:
        """Floating-point operations of training so far."""
        return sum(record.training_flops or 0.0 for record in records if not record.taken_over_from)

    def _counts_work(self) -> bool:
        """Whether tokens or operations are limited; if not, no pass over the records is needed."""
        return self.limits.tokens is not None or self.limits.flops is not None

    def _may_start(self, known: list[TrialRecord], *, kept: int) -> tuple[MayStart, str]:
        if not self._counts_work():
            return self._time_left(known, kept=kept) or ("yes", "")
        a_trial = self.limits.trial_tokens
        # Paused trials are promoted only if the budget allows it; twins are not trained.
        running = [r for r in known if not r.ended_at and r.paused_at is None and r.twin_of is None]
        left = {record.number: max(0, a_trial - record.tokens) for record in running}
        dearest = max(((record.flops_per_token or 0.0) for record in known), default=0.0)
        shares = (
            ("tokens", self.limits.tokens, self.tokens(known), float(sum(left.values())), float(a_trial)),
            (
                "FLOPs",
                self.limits.flops,
                self.flops(known),
                sum(left[record.number] * (record.flops_per_token or 0.0) for record in running),
                # The operations of the next trial are unknown before its proposal: assume the dearest so far.
                a_trial * dearest,
            ),
        )
        answer: tuple[MayStart, str] = ("yes", "")
        for name, limit, used, committed, one_more in shares:
            if limit is None:
                continue
            most_kept = math.inf if self.keeps_repeats else _SHARE_FOR_REPEATS * limit
            wanted = one_more + min(one_more * kept, most_kept)
            if used + wanted > limit:
                return "no", f"{used:,.4g} of {limit:,.4g} {name} are used; one more trial would exceed the limit"
            if used + committed + wanted > limit:
                answer = "not yet", f"running trials may need the rest of the {name}"
        return self._time_left(known, kept=kept) or answer

    def _time_left(self, known: list[TrialRecord], *, kept: int) -> tuple[MayStart, str] | None:
        limit = self.limits.wall_clock_s
        if limit is None:
            return None
        left = limit * (1 - _SHARE_FOR_REPEATS * (kept > 0)) - self.elapsed_s()
        fastest = min((r.training_s for r in known if r.outcome is Outcome.COMPLETED and r.training_s), default=0.0)
        if left <= 0 or left < fastest:
            # The limit would only stop it.
            return "no", f"{max(left, 0):.0f} s of the wall-clock are left, and the fastest trial took {fastest:.0f} s"
        return None
