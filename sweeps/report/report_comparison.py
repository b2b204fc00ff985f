"""Sections of a report on the strength of its conclusions: ties, equal budgets, other stopping rules, fairness."""

from collections.abc import Iterator

from sweeps.analysis.fairness import num_predicted_positions, remarks
from sweeps.analysis.noise_floor import Standing, seed_groups, standings, verdict, winner_in_words
from sweeps.analysis.rankings import AXES, disagreement, equal_budgets, in_words
from sweeps.analysis.stopping_replay import Replay, replay
from sweeps.analysis.sweep_findings import Findings
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.report.report_blocks import Block, Bullets, Cell, Paragraph, Section, Table, number, without_empty_columns
from sweeps.search_space.distribution import settings_in_words
from sweeps.settings.metric_config import Metric

_MOST_ROWS = 12


def ties_section(findings: Findings) -> Section:
    """Settings by their mean over seeds, with intervals, in groups that tie (difference below the noise)."""
    found = verdict(findings.records)
    if found is None:
        return Section("Winner and noise", [Paragraph("No trial completed.")])
    standing = standings(findings.records)
    rows: list[list[Cell]] = []
    for group in seed_groups(findings.records)[:_MOST_ROWS]:
        first = standing[group.records[0].number]
        rows.append(
            [
                number(first.tie_group, "d"),
                group.records[0].name,
                settings_in_words(group.records[0].settings),
                number(group.count, "d"),
                number(findings.metric.value(first.mean_loss)),
                *(number(end) for end in _ends(findings.metric, first)),
                number(findings.metric.value(first.mean_loss - found.best.mean), "+.4f"),
            ]
        )
    mean = "mean loss" if findings.metric.is_loss else f"mean {findings.metric.name}"
    columns = ["tie group", "trial", "settings", "seeds", mean, "95 % from", "to", "minus the best"]
    blocks: list[Block] = [Paragraph(winner_in_words(found))]
    blocks.append(without_empty_columns(Table(columns, rows, "ties")))
    return Section("Winner and noise", blocks)


def _ends(metric: Metric, standing: Standing) -> tuple[float | None, float | None]:
    """The interval of a mean, the lower end first."""
    if standing.low is None or standing.high is None:
        return None, None
    low, high = sorted(map(metric.value, (standing.low, standing.high)))
    return low, high


def budgets_section(findings: Findings) -> Section:
    """Rankings at equal tokens, training time and operations."""
    budgets = equal_budgets(findings)
    if not budgets:
        if not findings.metric.is_loss:
            words = f"The trials are ranked by {findings.metric.name}, which is known at their ends alone."
            return Section("Equal tokens, time, operations", [Paragraph(words)])
        words = "Fewer than two completed trials have comparable losses at equal tokens, time or operations."
        return Section("Equal tokens, time, operations", [Paragraph(words)])
    shown = [record for record, _ in budgets[0].losses][:_MOST_ROWS]
    losses = [{record.number: loss for record, loss in budget.losses} for budget in budgets]
    rows: list[list[Cell]] = []
    for record in shown:
        row: list[Cell] = [record.name, settings_in_words(record.settings)]
        for budget, known in zip(budgets, losses, strict=True):
            row += [number(budget.rank(record), "d"), number(known.get(record.number))]
        rows.append(row)
    columns = ["trial", "settings"]
    for budget in budgets:
        columns += [f"rank at {in_words(budget)}", "loss there"]
    missing = [axis for axis in AXES if axis not in {budget.axis for budget in budgets}]
    warned = disagreement(findings, budgets)
    blocks: list[Block] = [Bullets(warned)] if warned else []
    if not warned and len({budget.losses[0][0].number for budget in budgets}) > 1:
        words = "The first trial differs between these budgets, but the differences in loss are below the noise."
        blocks.append(Paragraph(words))
    elif not warned and not missing:
        blocks.append(Paragraph("The best trial is the same at equal tokens, training time and operations."))
    blocks.append(without_empty_columns(Table(columns, rows, "equal-budgets")))
    blocks.append(Paragraph(_what_compares(findings)))
    return Section("Equal tokens, time, operations", blocks)


def _what_compares(findings: Findings) -> str:
    if findings.sweep.early_stopping.has_branches:
        return (
            "Losses are those of the branches at the rungs and at the end. Between two of them the loss is "
            "interpolated over the logarithm of the budget."
        )
    return (
        "Losses are those at constant learning rate, before the cooldown: they compare at any point, and are higher "
        "than the final ones. Repeats with other seeds are left out."
    )


def replay_section(findings: Findings) -> Section:
    """Tokens saved and loss given up by other rules of early stopping."""
    found = replay(findings)
    title = "Other stopping rules"
    if found is None:
        return Section(title, [Paragraph("Too few trials reached the end to replay other rules on their curves.")])
    rows: list[list[Cell]] = [
        [
            rule.name,
            number(rule.num_stopped, "d"),
            number(rule.saved, ".0%"),
            number(rule.lost_nats, "+.4f"),
        ]
        for rule in found.rules
    ]
    table = Table(["rule", "trials stopped", "tokens saved", "loss of its best minus the best"], rows, "replay")
    return Section(title, [*map(Paragraph, _replay_in_words(found)), table])


def _replay_in_words(found: Replay) -> Iterator[str]:
    count = len(found.records)
    yield (
        f"The replay uses the curves of {count} trials that were drawn beforehand to train to the end. It is unbiased."
        if found.is_unbiased
        else f"The replay uses the curves of the {count} completed trials. Early stopping promoted them, so they are "
        "better than the stopped ones: real savings are larger than these, and real losses may be."
    )
    if found.rank_correlation:
        listed = ", ".join(f"{rho:.2f} at {rung:,} tokens" for rung, rho in found.rank_correlation.items())
        yield f"Rank correlation between the loss at a rung and the final loss: {listed}."


def fairness_section(findings: Findings) -> Section:
    """Comparisons that hold, and comparisons that mislead."""
    sweep = findings.sweep
    num_predicted = None if findings.manifest is None else num_predicted_positions(sweep, findings.manifest)
    rungs = rung_tokens(sweep.early_stopping, sweep.budget.trial_tokens)
    found = remarks(sweep, rungs=rungs, num_predicted=num_predicted)
    words = [f"{remark.verdict}: {remark}" for remark in found]
    nothing = "All trials of the sweep file compare."
    return Section("Fairness", [Bullets(words) if words else Paragraph(nothing)])
