"""Other rules of early stopping, replayed on the recorded curves: tokens saved and loss given up.

A rule is replayed on trials whose curves reach the end, in the order of their start, as on one lane. Trials drawn to
run to the end (`early_stopping.run_to_end`) are an unbiased sample. Trials that completed because they were good are
biased, and the report states that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from sweeps.analysis.rankings import loss_at
from sweeps.analysis.sweep_findings import Findings, finite_loss
from sweeps.analysis.trial_curves import Curve
from sweeps.early_stopping.median_stopping import MedianRule
from sweeps.early_stopping.rungs import Rungs, StoppingRule, rung_tokens
from sweeps.records.trial_records import TrialRecord
from sweeps.settings.sweep_sections import EarlyStoppingConfig

FEWEST_TRIALS = 4
"""Trials below which a replay is chance."""

_RULES = (
    EarlyStoppingConfig(method="asha", reduction_factor=2, first_rung=0.1),
    EarlyStoppingConfig(method="asha", reduction_factor=3, first_rung=0.1),
    EarlyStoppingConfig(method="asha", reduction_factor=4, first_rung=0.1),
    EarlyStoppingConfig(method="asha", reduction_factor=3, first_rung=0.03),
    EarlyStoppingConfig(method="asha", reduction_factor=3, first_rung=0.3),
    EarlyStoppingConfig(method="median", first_rung=0.1),
)


@dataclass(frozen=True)
class ReplayedRule:
    """One rule on the recorded curves."""

    name: str
    num_stopped: int
    saved: float
    """Saved share of the tokens of all trials."""
    lost_nats: float
    """Loss of the best trial that completes under the rule, minus the best loss of all."""


@dataclass(frozen=True)
class Replay:
    """The results of all rules on the same trials."""

    records: tuple[TrialRecord, ...]
    """The trials, in the order of their start."""
    is_unbiased: bool
    """Whether the trials were drawn beforehand to run to the end."""
    rules: tuple[ReplayedRule, ...]
    rank_correlation: dict[int, float]
    """Rung in tokens to Spearman's correlation of its losses with the final losses."""


def replay(findings: Findings) -> Replay | None:
    """Other rules on this sweep's curves; None if too few trials reached the end."""
    ended = sorted(
        (r for r in findings.completed if not r.is_repeat and r.twin_of is None), key=lambda record: record.number
    )
    drawn = [record for record in ended if record.run_to_end]
    is_unbiased = len(drawn) >= FEWEST_TRIALS or findings.sweep.early_stopping.method == "none"
    chosen = drawn if len(drawn) >= FEWEST_TRIALS else ended
    chosen = [record for record in chosen if not findings.curves[record.number].holdout.is_empty]
    if len(chosen) < FEWEST_TRIALS:
        return None
    total = findings.sweep.budget.trial_tokens
    curves = {record.number: findings.curves[record.number].holdout for record in chosen}
    rules = [_replayed(chosen, curves, config, total) for config in _RULES]
    rungs = rung_tokens(findings.sweep.early_stopping, total) or rung_tokens(EarlyStoppingConfig(method="asha"), total)
    return Replay(
        tuple(chosen),
        is_unbiased,
        tuple(sorted(rules, key=lambda rule: -rule.saved)),
        {rung: rho for rung in rungs if (rho := _rank_correlation(chosen, curves, rung)) is not None},
    )


def _replayed(
    records: Sequence[TrialRecord], curves: dict[int, Curve], config: EarlyStoppingConfig, total: int
) -> ReplayedRule:
    rungs = rung_tokens(config, total)
    rule = MedianRule(rungs) if config.method == "median" else Rungs(rungs, config.reduction_factor)
    used = {record.number: _end_of(record, rule, rungs, curves[record.number], total) for record in records}
    let_through = [record for record in records if used[record.number] >= total]
    best = min(_loss(record) for record in records)
    best_left = min((_loss(record) for record in let_through), default=math.inf)
    return ReplayedRule(
        _in_words(config),
        len(records) - len(let_through),
        1 - sum(used.values()) / (total * len(records)),
        best_left - best,
    )


def _in_words(config: EarlyStoppingConfig) -> str:
    best = "" if config.method == "median" else f", best 1/{config.reduction_factor}"
    return f"{config.method}{best}, first rung at {config.first_rung:.0%} of the tokens"


def _end_of(record: TrialRecord, rule: StoppingRule, rungs: Sequence[int], curve: Curve, total: int) -> int:
    """Tokens at which the rule ends a trial."""
    for rung in rungs:
        if not rule.judge(record.number, rung, _loss_at_rung(curve, rung)).continues:
            return rung
    return total


def _loss_at_rung(curve: Curve, rung: int) -> float:
    # Evaluations lie at this sweep's own rungs; between them the loss is interpolated.
    return loss_at(curve, min(max(rung, float(curve.tokens[0])), float(curve.tokens[-1])))


def _rank_correlation(records: Sequence[TrialRecord], curves: dict[int, Curve], rung: int) -> float | None:
    at_rung = [record.rung_losses.get(rung, _loss_at_rung(curves[record.number], rung)) for record in records]
    rho = float(spearmanr(at_rung, [_loss(record) for record in records]).statistic)
    return rho if math.isfinite(rho) else None


def _loss(record: TrialRecord) -> float:
    loss = finite_loss(record)
    assert loss is not None, "only completed trials are replayed"
    return loss
