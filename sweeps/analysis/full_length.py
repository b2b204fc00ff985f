"""What a sweep's losses at several lengths say of the full length: predictions, the path of the optimum, exponents."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sweeps.horizon.loss_over_length import Exponent, KnownLoss, LossOverLength, fit_loss_over_length
from sweeps.horizon.setting_axes import axes_of
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.sweep_config import SweepConfig

_INTERVAL = 1.96


@dataclass(frozen=True)
class Confirmation:
    """A training in full beside its prediction from shorter runs alone."""

    record: TrialRecord
    predicted: float
    """Nats per predicted token."""
    half_width: float
    """Of the 95 % interval of the prediction, with the noise of a seed."""

    @property
    def is_inside(self) -> bool:
        """Whether the loss lies in the interval."""
        return self.record.loss is not None and abs(self.record.loss - self.predicted) <= self.half_width


@dataclass(frozen=True)
class Optimum:
    """The best settings at a length, by the model."""

    tokens: int
    settings: dict[str, Any]
    loss: float
    half_width: float


@dataclass(frozen=True)
class FullLength:
    """The model of a sweep and its consequences."""

    exponents: dict[str, Exponent]
    path: tuple[Optimum, ...]
    """At each length of a probe and at the full length."""
    confirmations: tuple[Confirmation, ...]
    doubts: tuple[str, ...]
    best_probe: TrialRecord | None
    """The lowest loss at the longest length that several probes came to: the choice of a ranking of short runs."""
    predicted_of_best_probe: float
    """Predicted loss of its settings at the full length."""


def known_losses(records: Iterable[TrialRecord], *, full: int, shortest: int) -> Iterator[KnownLoss]:
    """All annealed losses of a sweep's trials; a diverged trial has an infinite one.

    Args:
        full: Tokens of a training in full.
        shortest: Tokens of the shortest probe.
    """
    for record in records:
        for tokens, loss in record.rung_losses.items():
            yield KnownLoss(record.settings, tokens, loss)
        if record.outcome is Outcome.COMPLETED and record.loss is not None:
            yield KnownLoss(record.settings, full, record.loss)
        elif record.outcome is Outcome.DIVERGED:
            yield KnownLoss(record.settings, shortest, math.inf)


def losses_of_trials(sweep: SweepConfig, records: Iterable[TrialRecord], rungs: tuple[int, ...]) -> list[KnownLoss]:
    """Annealed losses of a sweep's trials, without repeats and twins.

    Args:
        rungs: Lengths of probes, in tokens.
    """
    trials = (one for one in records if one.twin_of is None and not one.is_repeat)
    return list(known_losses(trials, full=sweep.budget.trial_tokens, shortest=rungs[0]))


def full_length(sweep: SweepConfig, records: Iterable[TrialRecord], rungs: tuple[int, ...]) -> FullLength | None:
    """The model of a sweep's losses over the length; None before the first probe, and where nothing is swept.

    Args:
        rungs: Lengths of probes, in tokens.
    """
    full, axes = sweep.budget.trial_tokens, axes_of(sweep.search)
    trials = sorted((one for one in records if one.twin_of is None), key=lambda one: one.number)
    known = losses_of_trials(sweep, trials, rungs)
    fitted = fit_loss_over_length(axes, known) if axes else None
    if fitted is None:
        return None
    before = fit_loss_over_length(axes, [one for one in known if one.tokens < full])
    done = [one for one in trials if one.outcome is Outcome.COMPLETED and one.loss is not None and not one.is_repeat]
    at_rung = {rung: [one for one in trials if math.isfinite(one.rung_losses.get(rung, math.inf))] for rung in rungs}
    compared = next((rung for rung in reversed(rungs) if len(at_rung[rung]) > 1), None)
    best_probe = None if compared is None else min(at_rung[compared], key=lambda one: one.rung_losses[compared])
    return FullLength(
        exponents=fitted.exponents(),
        path=tuple(_optimum(fitted, tokens, full) for tokens in (*rungs, full)),
        confirmations=() if before is None else tuple(_confirmation(before, one, full) for one in done),
        doubts=fitted.doubts_at(full),
        best_probe=best_probe,
        predicted_of_best_probe=math.nan if best_probe is None else _mean(fitted, best_probe.settings, full),
    )


def predicted_best(sweep: SweepConfig, records: Iterable[TrialRecord], rungs: tuple[int, ...]) -> Optimum | None:
    """The settings of the search space with the lowest predicted loss at the full length; None before the first probe.

    Args:
        rungs: Lengths of probes, in tokens.
    """
    full, axes = sweep.budget.trial_tokens, axes_of(sweep.search)
    fitted = fit_loss_over_length(axes, losses_of_trials(sweep, records, rungs)) if axes else None
    if fitted is None:
        return None
    settings = {path: sweep.search[path].nearest(value) for path, value in fitted.optimum(full).items()}
    found = fitted.predict([settings], full)
    return Optimum(full, settings, float(found.mean[0]), _INTERVAL * math.hypot(float(found.sd[0]), fitted.noise_sd))


def _optimum(fitted: LossOverLength, tokens: int, full: int) -> Optimum:
    settings = fitted.optimum(tokens, full=full)
    found = fitted.predict([settings], tokens)
    return Optimum(tokens, settings, float(found.mean[0]), _INTERVAL * float(found.sd[0]))


def _confirmation(before: LossOverLength, record: TrialRecord, full: int) -> Confirmation:
    found = before.predict([record.settings], full)
    return Confirmation(record, float(found.mean[0]), _INTERVAL * math.hypot(float(found.sd[0]), before.noise_sd))


def _mean(fitted: LossOverLength, settings: dict[str, Any], tokens: int) -> float:
    return float(fitted.predict([settings], tokens).mean[0])
