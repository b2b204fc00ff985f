"""The same trials ranked at equal tokens, equal training time and equal operations, from their recorded curves.

A larger batch needs more tokens and less time for the same loss, a longer model more operations. The best settings
depend on the budget that is fixed, so one ranking alone may mislead. Only comparable losses count:

* full-length, trunk-and-branch: the loss of the branch at each rung, and the final loss;
* `wsd` or `constant` without branches: holdout losses at constant learning rate, before any cooldown;
* a decaying schedule: none. A loss in the middle of a decay differs from that of a run that ends there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sweeps.analysis.noise_floor import noise_floor
from sweeps.analysis.sweep_findings import Findings
from sweeps.analysis.trial_curves import Curve
from sweeps.records.trial_records import TrialRecord

Axis = Literal["tokens", "training time", "operations"]
AXES: tuple[Axis, ...] = ("tokens", "training time", "operations")

_FEWEST = 2
_ROUNDING = 1e-9
_A_STEP = 0.01
"""A trial ends with a whole step, so lengths that are meant to be equal differ by up to one; as a share."""


@dataclass(frozen=True)
class EqualBudget:
    """Trials ranked by their loss at one budget on one axis."""

    axis: Axis
    at: float
    """Tokens, seconds or operations, the same for all trials."""
    losses: tuple[tuple[TrialRecord, float], ...]
    """Best first, in nats per predicted token."""
    too_late: tuple[TrialRecord, ...] = ()
    """Trials without a rank: their first comparable loss comes after this budget."""

    def rank(self, record: TrialRecord) -> int | None:
        """Rank from 1; None for a trial without a loss here."""
        names = [other.number for other, _ in self.losses]
        return names.index(record.number) + 1 if record.number in names else None


def comparable_curve(findings: Findings, record: TrialRecord) -> Curve:
    """Losses of a trial that compare with those of other trials; may be empty."""
    training = findings.sweep.training
    schedule = str(findings.setting(record, "training.schedule"))
    if findings.sweep.early_stopping.has_branches:
        points = dict(record.rung_losses)
        if record in findings.completed and record.loss is not None:
            points[record.tokens] = record.loss
        ordered = sorted((tokens, loss) for tokens, loss in points.items() if tokens > 0 and math.isfinite(loss))
        return Curve(np.array([tokens for tokens, _ in ordered], float), np.array([loss for _, loss in ordered]))
    curve = findings.curves[record.number].holdout
    if schedule == "constant":
        return curve
    if schedule != "wsd":
        return Curve(np.array([]), np.array([]))
    cooldown = float(findings.setting(record, "training.cooldown") or training.cooldown)
    is_before = curve.tokens <= (1 - cooldown) * findings.sweep.budget.trial_tokens
    return Curve(curve.tokens[is_before], curve.losses[is_before])


def equal_budgets(findings: Findings) -> list[EqualBudget]:
    """One ranking of the completed trials, without repeats, for each axis with enough data.

    Empty where another metric than the holdout loss ranks the trials: it is known at their ends alone.
    """
    axes = AXES if findings.metric.is_loss else ()
    return [found for axis in axes if (found := _at_equal(findings, axis)) is not None]


def disagreement(findings: Findings, budgets: Sequence[EqualBudget]) -> list[str]:
    """Sentences on each axis where another trial beats the best at equal tokens by more than the noise."""
    by_axis = {budget.axis: budget for budget in budgets}
    if "tokens" not in by_axis:
        return []
    best = by_axis["tokens"].losses[0][0]
    noise = noise_floor(findings.records)
    least = noise.least_difference(1, 1) if noise else 0.0
    words = []
    for budget in budgets:
        first, loss = budget.losses[0]
        losses = {record.number: value for record, value in budget.losses}
        if best.number not in losses:
            continue  # Its first loss comes later: nothing is known there.
        behind = losses[best.number] - loss
        if first.number == best.number or behind <= max(least, _ROUNDING):
            continue
        words.append(
            f"At equal {budget.axis} ({in_words(budget)}) {first.name} beats {best.name}, the best at equal tokens, by "
            f"{behind:.4f} nats: the best settings depend on the scarce resource."
        )
    return words


def in_words(budget: EqualBudget) -> str:
    """The budget with its unit."""
    match budget.axis:
        case "tokens":
            return f"{budget.at:,.0f} tokens"
        case "training time":
            return f"{budget.at:,.1f} s"
        case _:
            return f"{budget.at:.3g} operations"


def _at_equal(findings: Findings, axis: Axis) -> EqualBudget | None:
    curves: dict[int, Curve] = {}
    for record in findings.completed:
        a_token = _cost_of_a_token(record, axis)
        curve = comparable_curve(findings, record)
        if not record.is_repeat and record.twin_of is None and a_token and not curve.is_empty:
            curves[record.number] = Curve(curve.tokens * a_token, curve.losses)
    if len(curves) < _FEWEST:
        return None
    # The largest budget that all trials have a comparable loss at.
    at = min(float(curve.tokens[-1]) for curve in curves.values())
    records = {record.number: record for record in findings.completed}
    reached = {n: curve for n, curve in curves.items() if curve.tokens[0] <= at * (1 + _A_STEP)}
    losses = [(records[number], loss_at(curve, at)) for number, curve in reached.items()]
    return EqualBudget(
        axis,
        at,
        tuple(sorted(losses, key=lambda pair: (pair[1], pair[0].number))),
        tuple(records[number] for number in curves if number not in reached),
    )


def loss_at(curve: Curve, cost: float) -> float:
    """The loss at a cost, interpolated between two points over the logarithm of the cost."""
    return float(np.interp(math.log(cost), np.log(curve.tokens), curve.losses))


def _cost_of_a_token(record: TrialRecord, axis: Axis) -> float | None:
    match axis:
        case "tokens":
            return 1.0
        case "training time":
            # Mean speed of the trial: reports come seconds apart, too coarse for a short trial.
            return record.training_s / record.tokens if record.tokens else None
        case _:
            return record.flops_per_token
