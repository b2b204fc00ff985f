"""The next step of a search that names the winner at the full length from short probes.

A probe is a trial that pauses at a rung; a branch that cools down there gives the loss of a training of that length.
Its settings are those of the space, moved along the optimum's path to the rung's length (sweeps/horizon): the best
learning rate and batch size of a short training are not those of a long one. Each rung gets the same share of the
tokens of the search. The predicted best settings are then trained in full, and a rival as long as it may be better.

The rule has no state: it decides from the records, so a resumed sweep decides as an uninterrupted one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from scipy.special import ndtr

from core.settings.cooldown_branch import Pause
from sweeps.analysis.full_length import known_losses
from sweeps.early_stopping.probe_lengths import num_probes, shortest_probe
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.horizon.loss_over_length import KnownLoss, LossOverLength, fit_loss_over_length
from sweeps.horizon.setting_axes import SettingAxis, axes_of, coordinate_rows, moved_settings
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord
from sweeps.search.candidate_settings import candidate_settings
from sweeps.search.prior_trials import PriorKnowledge
from sweeps.search_space.distribution import SearchSpace
from sweeps.settings.setting_paths import MICRO_BATCH, SEED
from sweeps.settings.sweep_config import SweepConfig

Settings = dict[str, Any]
SMALLEST_CHANCE = 0.05
"""Chance to beat the best full training below which no further rival is trained in full."""


@dataclass(frozen=True)
class Probe:
    """Start a new trial that pauses at its first rung."""

    settings: Settings


@dataclass(frozen=True)
class Longer:
    """Continue a paused trial to its next rung."""

    record: TrialRecord


@dataclass(frozen=True)
class InFull:
    """Train settings to the full length."""

    settings: Settings
    record: TrialRecord | None
    """The paused trial with these settings; None: none has them."""


Step = Probe | Longer | InFull


@dataclass(frozen=True)
class FullLengthSearch:
    """The rule, for one sweep."""

    space: SearchSpace
    candidates: Sequence[Settings]
    """Settings of the space that may win, in random order."""
    rungs: tuple[int, ...]
    """Tokens, ascending."""
    full: int
    """Tokens of a training in full."""
    search_tokens: int
    """Tokens of all probes, branches included."""
    cooldown: float
    """Share of a rung's tokens that its branch adds."""
    confirm: int
    """Most settings that are trained in full."""
    shortest: Callable[[Settings], float] = lambda _: 0.0
    """Fewest tokens of a run with these settings that its branch can anneal."""
    nearest: Callable[[Settings, int], Settings | None] = lambda settings, _: settings
    """Settings that can be trained, nearest to those wanted at a length; None: there are none."""
    prior: PriorKnowledge | None = None
    """Trials of earlier sweeps, for every second of the first probes."""
    _last_fit: list[tuple[list[KnownLoss], LossOverLength | None]] = field(default_factory=list, compare=False)
    """The newest fit and its losses: one step asks for it once a rung, and the report of a pause once more."""

    def next(self, records: Iterable[TrialRecord], *, may_start: Callable[[Settings], bool]) -> Step | None:
        """The next step; None if no step is left, or none before a running trial ends.

        Args:
            may_start: Whether settings fit and are valid.
        """
        known = [record for record in records if not record.is_repeat and record.twin_of is None]
        if not self._axes:
            return self._in_full(known, may_start)
        for index in range(len(self.rungs)):
            if self._num_at(known, index) < self._count(index):
                step = self._step_at(known, index, may_start)
                if step is not None:
                    return step
        if any(_is_running(record) and not record.run_to_end for record in known):
            return None
        return self._in_full(known, may_start)

    def pause_of(self, record: TrialRecord, *, cooldown: float) -> Pause | None:
        """The next pause of a trial; None for one that is trained in full.

        Args:
            cooldown: Cooldown of the trial's run: the branch takes that share of the rung's tokens.
        """
        rung = None if record.run_to_end else self._next_rung(record)
        return None if rung is None else Pause(rung, round(cooldown * rung))

    def surrogate(self, records: Iterable[TrialRecord]) -> LossOverLength | None:
        """The loss over settings and length, from all losses that are known; None without any."""
        known = list(known_losses(records, full=self.full, shortest=self.rungs[0]))
        if not self._last_fit or self._last_fit[0][0] != known:
            self._last_fit[:] = [(known, fit_loss_over_length(self._axes, known))]
        return self._last_fit[0][1]

    @cached_property
    def _axes(self) -> tuple[SettingAxis, ...]:
        return axes_of(self.space)

    def _count(self, index: int) -> int:
        """Trials that the search can afford at a rung."""
        return num_probes(self.search_tokens, self.rungs, index, cooldown=self.cooldown)

    def _num_at(self, known: Sequence[TrialRecord], index: int) -> int:
        """Trials that have been at a rung or are on their way there."""
        rung = self.rungs[index]
        return sum(
            rung in record.rung_losses
            or (_is_running(record) and not record.run_to_end and self._next_rung(record) == rung)
            for record in known
        )

    def _next_rung(self, record: TrialRecord) -> int | None:
        shortest = self.shortest(record.settings)
        return next((r for r in self.rungs if r not in record.rung_losses and r >= shortest), None)

    def _step_at(
        self, known: Sequence[TrialRecord], index: int, may_start: Callable[[Settings], bool]
    ) -> Probe | Longer | None:
        """The most promising trial for a rung: one that waits at an earlier rung, or a new one without earlier rung."""
        rung = self.rungs[index]
        fitted = self.surrogate(known)
        waiting = [
            record
            for record in known
            if record.paused_at is not None
            and self._next_rung(record) == rung
            and math.isfinite(record.rung_losses[record.paused_at])
        ]
        new = self._new_settings(known, index, fitted)
        if fitted is None or (index == 0 and len(known) < self._num_spread):
            order = self._farthest_first(new, [record.settings for record in known])
            if self.prior is not None and len(known) % 2 == 0:
                # The others spread: a misleading prior costs half of the first probes, which the model still uses.
                order = [*self.prior.lowest_first(self._in_full_length(new, rung), known), *order]
        else:
            found = fitted.predict([*(record.settings for record in waiting), *new], rung)
            # One standard deviation below the prediction: the loss may be lowest there.
            order = [int(one) - len(waiting) for one in (found.mean - found.sd).argsort(kind="stable")]
        part = self.search_tokens * (index + 1) / len(self.rungs)
        left = part - sum(self._probe_tokens(record) for record in known)
        # Every length gets one trial: the exponents of one length alone are those of the prior.
        is_first = not self._num_at(known, index)
        for one in order:
            begun = (waiting[one].paused_at or 0) if one < 0 else 0
            if not is_first and rung - begun + self.cooldown * rung > left:
                continue
            if one < 0:
                return Longer(waiting[one])
            if may_start(new[one]):
                return Probe(new[one])
        return None

    def _probe_tokens(self, record: TrialRecord) -> float:
        """Tokens of a trial as a probe, with its branches; up to its next rung while it runs."""
        reached = [rung for rung in self.rungs if rung in record.rung_losses]
        if _is_running(record) and not record.run_to_end and (rung := self._next_rung(record)) is not None:
            reached.append(rung)
        return max(reached, default=0) + self.cooldown * sum(reached)

    @cached_property
    def _num_spread(self) -> int:
        """First probes, spread over the space."""
        return max(2 * len(self._axes) + 1, self._count(0) // 2)

    def _new_settings(self, known: Sequence[TrialRecord], index: int, fitted: LossOverLength | None) -> list[Settings]:
        """Settings of the space, moved to the length of a rung that is the first long enough for them."""
        rung, shorter = self.rungs[index], self.rungs[:index]
        seen = {repr(_learning(record.settings)) for record in known}
        found: list[Settings] = []
        for candidate in self.candidates:
            scaled = self.nearest(scaled_settings(self._axes, candidate, self.full, rung, fitted), rung)
            if scaled is None or repr(_learning(scaled)) in seen:
                continue
            shortest = self.shortest(scaled)
            if shortest <= rung and all(one < shortest for one in shorter):
                found.append(scaled)
                seen.add(repr(_learning(scaled)))
        return found

    def _in_full_length(self, settings: Sequence[Settings], rung: int) -> list[Settings]:
        """Settings of probes, moved from their rung to the full length."""
        return [scaled_settings(self._axes, one, rung, self.full, None) for one in settings]

    def _farthest_first(self, wanted: Sequence[Settings], tried: Sequence[Settings]) -> list[int]:
        """Indices of settings, the farthest from all tried ones first; without tried ones the most central first."""
        if not wanted:
            return []
        points = coordinate_rows(self._axes, wanted)
        width = np.ptp(points, axis=0)
        width[width == 0] = 1.0
        if not tried:
            return [int(one) for one in np.linalg.norm((points - points.mean(axis=0)) / width, axis=1).argsort()]
        known = coordinate_rows(self._axes, tried)
        distances = np.linalg.norm((points[:, None] - known[None]) / width, axis=2).min(axis=1)
        return [int(one) for one in (-distances).argsort(kind="stable")]

    def _in_full(self, known: Sequence[TrialRecord], may_start: Callable[[Settings], bool]) -> InFull | None:
        """The candidate with the lowest predicted loss, then rivals by their expected gain over the best."""
        asked = [record for record in known if record.run_to_end]
        trained = [record for record in asked if _is_running(record) or record.outcome is Outcome.COMPLETED]
        if len(trained) >= self.confirm:
            return None
        tried = {repr(_learning(record.settings)) for record in asked}
        left = [one for one in self.candidates if repr(_learning(one)) not in tried]
        fitted = self.surrogate(known)
        if fitted is None:
            return next((InFull(one, None) for one in left if may_start(one)), None)
        found = fitted.predict(left, self.full)
        best = min((self._expected_loss(record, fitted) for record in trained), default=None)
        scores = -found.mean if best is None else found.expected_improvement(best)
        for one in (-scores).argsort(kind="stable"):
            if best is not None and ndtr((best - found.mean[one]) / max(found.sd[one], 1e-12)) < SMALLEST_CHANCE:
                return None
            if may_start(left[one]):
                waiting = (r for r in known if r.settings == left[one] and r.paused_at is not None)
                return InFull(left[one], next(waiting, None))
        return None

    def _expected_loss(self, record: TrialRecord, fitted: LossOverLength) -> float:
        """The loss of a training in full; predicted while it runs."""
        if record.outcome is Outcome.COMPLETED and record.loss is not None:
            return record.loss
        return float(fitted.predict([record.settings], self.full).mean[0])

    def reason(self, record: TrialRecord, records: Iterable[TrialRecord]) -> str:
        """The reason why a paused trial does not continue, with the numbers."""
        rung = record.paused_at
        assert rung is not None, "only paused trials wait"
        loss = record.rung_losses[rung]
        if not math.isfinite(loss):
            return f"loss {loss} of the probe at {rung:,} tokens is not finite"
        fitted = self.surrogate(records)
        assert fitted is not None, "a finite loss is known"
        found = fitted.predict([record.settings], self.full)
        return (
            f"probe: loss {loss:.4f} at {rung:,} tokens; its settings are predicted to come to {found.mean[0]:.4f} "
            f"+- {1.96 * found.sd[0]:.4f} at the full length"
        )

    @property
    def ended_by(self) -> str:
        """The end of the search in words."""
        if not self.confirm:
            return "probes; early_stopping.confirm: none trains nothing in full"
        return "trainings in full of the settings predicted to be best"


def full_length_search(sweep: SweepConfig, prior: PriorKnowledge | None = None) -> FullLengthSearch:
    """The rule of a sweep file whose tokens are known.

    Args:
        prior: Trials of earlier sweeps; None: the first probes spread over the space.
    """
    stopping, full = sweep.early_stopping, sweep.budget.trial_tokens
    return FullLengthSearch(
        space=sweep.search,
        candidates=candidate_settings(sweep),
        rungs=rung_tokens(stopping, full),
        full=full,
        search_tokens=sweep.probe_tokens,
        cooldown=sweep.training.cooldown,
        confirm=stopping.num_in_full,
        shortest=partial(shortest_probe, sweep),
        prior=prior,
    )


def scaled_settings(
    axes: Sequence[SettingAxis], settings: Settings, tokens_from: int, tokens_to: int, fitted: LossOverLength | None
) -> Settings:
    """Settings moved along the path of the optimum to another length; by published exponents without a fit."""
    if fitted is not None:
        return fitted.scaled_down(settings, tokens_from, tokens_to)
    return moved_settings(axes, settings, tokens_to / tokens_from, {axis.path: axis.exponent for axis in axes})


def _learning(settings: Settings) -> Settings:
    """The settings that change what a model learns."""
    return {path: value for path, value in settings.items() if path not in (MICRO_BATCH, SEED)}


def _is_running(record: TrialRecord) -> bool:
    return record.outcome is None and record.paused_at is None
