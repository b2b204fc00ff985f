"""Sections of a report on the results: ranking, curves, settings, comparison, conclusions, next steps."""

from collections import Counter
from collections.abc import Iterator, Mapping

from sweeps.analysis.expected_gain import loss_model
from sweeps.analysis.importances import importances
from sweeps.analysis.next_steps import next_steps
from sweeps.analysis.noise_floor import NoiseFloor, noise_floor, verdict, winner_in_words
from sweeps.analysis.rankings import disagreement, equal_budgets
from sweeps.analysis.sweep_findings import Findings, finite_loss, speed
from sweeps.analysis.yardsticks import yardsticks_of
from sweeps.figures.loss_plots import loss_curves, parameter_plots
from sweeps.figures.setting_curves import setting_curves
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import LOSS, ChosenBy, TrialRecord
from sweeps.report.baseline import Baseline
from sweeps.report.report_blocks import (
    Block,
    Bullets,
    Cell,
    Facts,
    Paragraph,
    Section,
    Table,
    drawn,
    number,
    without_empty_columns,
)
from sweeps.report.report_models import model_blocks
from sweeps.search_space.distribution import format_setting, settings_in_words, short_name
from sweeps.settings.metric_config import Metric
from sweeps.settings.setting_paths import MICRO_BATCH, SEED

_METRICS = {
    "holdout/perplexity": ("perplexity", ",.2f"),
    "holdout/bits_per_byte": ("bits per byte", ".4f"),
    "holdout/accuracy": ("accuracy", ".4f"),
    "holdout/top10_accuracy": ("top-10", ".4f"),
    "holdout/macro_f1": ("macro F1", ".4f"),
}


_BY_SETTINGS = (
    " Repeats of one setting are adjacent. The mean loss over their seeds plus one standard error sets their rank, so "
    "the lowest single loss may rank below the first."
)


def summary_box(findings: Findings) -> list[Block]:
    """The answer in short: the best settings, their loss, the path of the model."""
    best = findings.best
    facts: list[tuple[str, str]] = []
    if best is None:
        words = (
            "No trial has completed yet." if _is_open(findings) else "No trial completed, so there is no best trial."
        )
        blocks: list[Block] = [Paragraph(words)]
    else:
        facts.append(("best trial", best.name))
        facts += [] if findings.metric.is_loss else [(findings.metric.name, f"{best.score:.4f}")]
        facts.append(("holdout loss", f"{best.loss:.4f} nats per predicted token"))
        yardsticks, loss = yardsticks_of(findings.summary), finite_loss(best)
        if yardsticks is not None and loss is not None:
            facts.append(("tables of token counts", yardsticks.in_words(loss)))
            nothing = yardsticks.nothing_learnt(loss)
            facts += [] if nothing is None else [("learnt", nothing)]
        facts += [(short_name(path), format_setting(value)) for path, value in best.settings.items()]
        tied = sum(findings.is_tied_with_best(record) for record in findings.records)
        if tied:
            facts.append(("ties", f"{tied} more (difference below the noise between seeds)"))
        facts.append(("model", str(findings.summary.get("model") or "not written yet")))
        blocks = []
    facts.append(("trials", _counted(findings)))
    return [*blocks, Facts(facts)]


def _is_open(findings: Findings) -> bool:
    return findings.summary.get("status") not in (SweepStatus.FINISHED, SweepStatus.INTERRUPTED)


def _counted(findings: Findings) -> str:
    open_ones = "running" if _is_open(findings) else "unfinished"
    counts = Counter(str(record.outcome or open_ones).lower() for record in findings.records)
    words = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"
    refused = f"; {len(findings.refused)} proposals refused before launch" if findings.refused else ""
    return f"{words} (budget {findings.sweep.num_trials}){refused}"


def ranking_section(findings: Findings) -> Section:
    """Trials with a loss, best first."""
    shown = [record for record in findings.records if record.loss is not None]
    if not shown:
        return Section("Ranking", [Paragraph("No trial has a holdout loss.")])
    of_tasks = {name: (name, ".4f") for task in findings.sweep.evaluation.tasks for name in task.metrics}
    known = _METRICS | of_tasks
    metrics = {name: known[name] for name in known if any(name in record.metrics for record in shown)}
    columns = [
        "rank", "trial", "outcome", "holdout loss", *(heading for heading, _ in metrics.values()),
        *map(short_name, findings.paths), "tokens", "tokens/s", "tie",
    ]  # fmt: skip
    rows = [_ranking_row(findings, record, metrics) for record in shown]
    blocks: list[Block] = [without_empty_columns(Table(columns, rows, "ranking"))]
    blocks.append(
        Paragraph(
            "Losses are in nats per predicted token on the same holdout for every trial"
            + (", under the same masks at 15\u00a0%." if findings.sweep.objective.masked_lm else ".")
            + _ranked_by_in_words(findings.metric)
            + " Stopped trials rank below completed ones, by the last rung that they reached: their final loss is "
            "unknown." + (_BY_SETTINGS if findings.repeats else "")
        )
    )
    noise = noise_floor(findings.records)
    blocks.append(
        Paragraph(
            _noise_in_words(findings.metric, noise)
            if noise is not None
            else f"No settings were repeated with other seeds (`{SEED}`). The noise is unknown, so ties are not marked."
        )
    )
    return Section("Ranking", blocks)


def _noise_in_words(metric: Metric, noise: NoiseFloor) -> str:
    what, rows = ("the loss", "the holdout adds") if metric.is_loss else (metric.name, "the evaluated rows add")
    differ = "their losses differ" if metric.is_loss else "they differ"
    return (
        f"The standard deviation of {what} between seeds is {noise.std_nats:.4f}{metric.unit} ({noise.degrees} degrees "
        f"of freedom), and {rows} {noise.holdout_nats:.4f} to a difference. Two single trials tie if {differ} by less "
        f"than {noise.least_difference(1, 1):.4f}."
    )


def _ranked_by_in_words(metric: Metric) -> str:
    if metric.is_loss:
        return ""
    best = "highest" if metric.mode == "max" else "lowest"
    return f" The trials are ranked by {metric.name}, the {best} first, as the sweep file says."


def _ranking_row(findings: Findings, record: TrialRecord, metrics: Mapping[str, tuple[str, str]]) -> list[Cell]:
    return [
        number(findings.rank(record), "d"),
        record.name,
        record.outcome or "running",
        number(record.loss),
        *(number(record.metrics.get(name), form) for name, (_, form) in metrics.items()),
        *(_setting_cell(findings, record, path) for path in findings.paths),
        number(record.tokens, ",d"),
        number(speed(record), ",.0f"),
        "tie" if findings.is_tied_with_best(record) else "",
    ]


def _setting_cell(findings: Findings, record: TrialRecord, path: str) -> Cell:
    value = findings.setting(record, path)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value, ".3g" if isinstance(value, float) else "d")
    return "" if value is None else format_setting(value)


def curves_section(findings: Findings) -> Section:
    """Loss over tokens, and the best curve in numbers."""
    bands = " Grey bands span the seeds of one setting." if findings.repeats else ""
    caption = (
        "Loss over training tokens; the five leading trials in colour, the others grey. Holdout losses compare between "
        f"trials. Train losses need not: each is of the trial's own objective.{bands}"
    )
    curves = drawn("the loss curves", lambda: loss_curves(findings), lambda: caption)
    if not curves:
        return Section("Loss curves", [Paragraph("No trial has reported a loss.")])
    return Section("Loss curves", [*curves, *map(Paragraph, _curve_analysis(findings))])


def _curve_analysis(findings: Findings) -> Iterator[str]:
    if findings.best is None:
        return
    curve = findings.curves[findings.best.number].holdout
    if len(curve.tokens) < 2:
        return
    middle = len(curve.tokens) // 2
    yield (
        f"{findings.best.name} is the best trial: holdout loss {curve.losses[0]:.4f} at {curve.tokens[0]:,.0f} tokens, "
        f"{curve.losses[middle]:.4f} at {curve.tokens[middle]:,.0f}, {curve.losses[-1]:.4f} at {curve.tokens[-1]:,.0f}."
    )
    lowest = curve.losses.argmin()
    if lowest < len(curve.losses) - 1:
        yield (
            f"Its holdout loss was lowest before the end, {curve.losses[lowest]:.4f} at {curve.tokens[lowest]:,.0f} "
            "tokens: it rises after that."
        )


def settings_section(findings: Findings) -> Section:
    """The effect of each swept setting on the loss."""
    if not findings.paths:
        return Section("Settings", [Paragraph("No setting was swept.")])
    blocks: list[Block] = []
    plain = (
        "Holdout loss against each setting. Marks along the top are trials without a loss: infeasible or diverged. A "
        "loss above the scale is drawn on its upper edge."
    )
    blocks += drawn("loss against settings", lambda: parameter_plots(findings), lambda: plain)
    modelled = loss_model(findings.sweep, findings.records)
    # The expected value of another metric would need other words in the picture.
    if modelled is not None and findings.metric.is_loss:
        surface, progress = modelled
        caption = (
            f"Expected loss {progress.in_words} against each setting, averaged over the other settings of the trials. "
            f"The model is a Gaussian process of {len(progress.losses)} trials; the band is one standard deviation. "
            f"The noise that the settings do not explain is {surface.noise_nats:.4f} nats (standard deviation)."
        )
        blocks += drawn(
            "expected loss against settings", lambda: setting_curves(findings, surface, progress), lambda: caption
        )
    found = importances(findings)
    if isinstance(found, str):
        blocks.append(Paragraph(f"Importances are not computed: {found}"))
    else:
        rows: list[list[Cell]] = [[f"{path}", number(share, ".1%", bar=share)] for path, share in found.shares.items()]
        blocks.append(Table(["setting", "importance"], rows, "importances"))
        control = " The micro-batch does not change learning, so its share shows the size of chance."
        blocks.append(
            Paragraph(
                "Importance (PED-ANOVA) is how sharply a setting separates the best quarter of the "
                f"{found.num_trials} trials {found.in_words} from the rest"
                + ("." if findings.metric.is_loss else f", by {findings.metric.name}.")
                + (control if MICRO_BATCH in found.shares else "")
            )
        )
    return Section("Settings", [*blocks, *model_blocks(findings)])


def comparison_section(findings: Findings) -> Section:
    """The best trial against the baseline that the file names, or against the settings that the file starts with."""
    best = findings.best
    named = findings.summary.get("baseline")
    if best is not None and named is not None:
        return Section("Comparison with the baseline", list(_beside(findings, best, Baseline.model_validate(named))))
    listed = [r for r in findings.completed if r.chosen_by is ChosenBy.START_WITH]
    if best is None or not listed:
        why = (
            ("no trial completed")
            if best is None
            else "no trial of `start_with` completed, and the file names no baseline"
        )
        return Section("Comparison with the baseline", [Paragraph(f"No comparison: {why}.")])
    rows: list[list[Cell]] = []
    best_loss = finite_loss(best)
    assert best_loss is not None
    for record in sorted(listed, key=lambda r: r.number):
        loss = finite_loss(record)
        assert loss is not None
        rows.append([record.name, settings_in_words(record.settings), number(loss), number(best_loss - loss, "+.4f")])
    words = (
        "The best trial has settings of `start_with`: the search found none better."
        if best in listed
        else f"The best trial is {best.name} with {settings_in_words(best.settings)}."
    )
    table = Table(["trial of start_with", "settings", "holdout loss", "best minus it"], rows, "comparison")
    return Section("Comparison with the baseline", [Paragraph(words), table])


def _beside(findings: Findings, best: TrialRecord, baseline: Baseline) -> Iterator[Block]:
    best_loss = finite_loss(best)
    assert best_loss is not None
    difference = best_loss - baseline.loss
    rows: list[list[Cell]] = [
        ["baseline", baseline.name, number(baseline.loss), number(baseline.tokens, ",d"),
         number(baseline.tokens_per_s, ",.0f"), settings_in_words(baseline.settings)],
        ["best trial", best.name, number(best_loss), number(best.tokens, ",d"),
         number(speed(best), ",.0f"), settings_in_words(best.settings)],
    ]  # fmt: skip
    word = "below" if difference < 0 else "above"
    yield Paragraph(
        f"The best trial is {abs(difference):.4f} nats per token ({abs(difference) / baseline.loss:.2%}) {word} "
        "the baseline."
        if difference
        else "The best trial and the baseline have the same loss."
    )
    yield without_empty_columns(
        Table(["", "run", "holdout loss", "tokens", "tokens/s", "settings"], rows, "comparison")
    )
    fingerprint = (findings.summary.get("data") or {}).get("fingerprint")
    if baseline.data_fingerprint != fingerprint:
        yield Paragraph(
            "The baseline was evaluated on another prepared corpus. Its holdout has other tokens, so the two losses "
            "do not compare exactly."
            if baseline.data_fingerprint
            else "The baseline names no prepared corpus, so its holdout may have other tokens."
        )


def next_section(findings: Findings) -> Section:
    """Next steps, each with its reason."""
    steps = next_steps(findings)
    nothing = "The figures suggest no change to the sweep."
    return Section("What to try next", [Bullets(steps) if steps else Paragraph(nothing)])


def conclusions_section(findings: Findings) -> Section:
    """The result in sentences."""
    best = findings.best
    if best is None:
        return Section("Conclusions", [Paragraph("No conclusions: no trial completed.")])
    setting = f" with {settings_in_words(best.settings)}" if best.settings else ""
    by = "" if findings.metric.is_loss else f"{findings.metric.name} {best.score:.4f}, "
    items = [f"{best.name}{setting} is the best of {len(findings.completed)} completed trials: {by}holdout loss "
             f"{best.metrics[LOSS]:.4f} nats per predicted token."]  # fmt: skip
    found_apart = verdict(findings.records)
    items += [winner_in_words(found_apart)] if found_apart is not None else []
    items += disagreement(findings, equal_budgets(findings))
    found = importances(findings)
    if not isinstance(found, str):
        path, share = next(iter(found.shares.items()))
        items.append(f"`{path}` mattered most ({share:.0%} of the importance).")
    return Section("Conclusions", [Bullets(items)])
