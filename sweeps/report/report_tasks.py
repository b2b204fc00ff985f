"""Section of a report on downstream tasks: metrics of all trials, and the choice by each beside that by the loss."""

import math
from collections.abc import Iterator, Sequence

from sweeps.analysis.spearman import spearman
from sweeps.analysis.sweep_findings import Findings, finite_loss
from sweeps.records.trial_records import TrialRecord
from sweeps.report.report_blocks import Block, Bullets, Cell, Paragraph, Section, Table, number, without_empty_columns
from sweeps.search_space.distribution import settings_in_words

_FEWEST_TRIALS = 3
"""Trials below which a rank correlation is 1 or -1 whatever they are."""


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, with mean ranks for ties; None below three pairs, or where one side is constant."""
    if len(first) < _FEWEST_TRIALS or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return spearman(first, second)


def tasks_section(findings: Findings) -> Section:
    """Metrics of the downstream tasks of every trial, beside its holdout loss."""
    title = "Downstream tasks"
    names = [name for task in findings.sweep.evaluation.tasks for name in task.metrics]
    shown = [record for record in findings.records if any(name in record.metrics for name in names)]
    blocks: list[Block] = [Bullets(list(_accounts(findings)))]
    if not shown:
        return Section(title, [*blocks, Paragraph("No trial has come to its end yet, so no linear probe was fitted.")])
    blocks.append(Bullets([_against_loss(findings, name) for name in names]))
    rows: list[list[Cell]] = [
        [
            number(findings.rank(record), "d"),
            record.name,
            record.outcome or "running",
            *(number(record.metrics.get(name)) for name in names),
            number(record.loss),
            settings_in_words(record.settings),
        ]
        for record in shown
    ]
    columns = ["rank", "trial", "outcome", *names, "holdout loss", "settings"]
    blocks.append(without_empty_columns(Table(columns, rows, "tasks")))
    blocks.append(
        Paragraph(
            "A linear probe is a logistic regression on the mean of a text's last hidden states, standardized, of the "
            "frozen model. Each trial has the same rows to fit and to test. Figures of stopped trials are those of the "
            "rung at which they stopped."
        )
    )
    return Section(title, blocks)


def _accounts(findings: Findings) -> Iterator[str]:
    for name, figures in (findings.summary.get("tasks") or {}).items():
        tests = figures["rows_to_test"]
        yield (
            f"{name}: {figures['rows'] - tests:,} rows fit a linear probe and {tests:,} test it, "
            f"{len(figures['classes'])} classes; {figures['rows_rejected']:,} of {figures['rows_read']:,} rows were "
            f"rejected. Always naming the commonest class has an accuracy of "
            f"{figures['accuracy_of_the_commonest']:.4f}."
        )


def _against_loss(findings: Findings, name: str) -> str:
    """The correlation of a metric with the holdout loss over completed trials, and the choice of each."""
    known = [(r, r.metrics[name], loss) for r in findings.completed if (loss := _both(r, name)) is not None]
    if not known:
        return f"{name}: no trial has completed."
    by_metric, highest, _ = max(known, key=lambda one: (one[1], -one[0].number))
    by_loss, at_lowest, lowest = min(known, key=lambda one: (one[2], one[0].number))
    rho = rank_correlation([value for _, value, _ in known], [loss for _, _, loss in known])
    words = f"{name}: "
    words += (
        f"too few of the {len(known)} completed trials differ for a rank correlation with the holdout loss. "
        if rho is None
        else f"rank correlation with the holdout loss {rho:+.2f} (Spearman, n = {len(known)}; -1: both rank alike). "
    )
    if by_metric.number == by_loss.number or highest == at_lowest:
        return words + f"The trial of the lowest loss, {by_loss.name}, also has the highest value, {highest:.4f}."
    return words + (
        f"It chooses {by_metric.name} ({highest:.4f}). The holdout loss chooses {by_loss.name} ({lowest:.4f}), whose "
        f"value is {at_lowest:.4f}."
    )


def _both(record: TrialRecord, name: str) -> float | None:
    """The loss of a trial that also has the metric."""
    return finite_loss(record) if math.isfinite(record.metrics.get(name, math.nan)) else None
