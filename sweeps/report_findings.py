"""Sections of a report on what came out: ranking, curves, settings, memory, time, waste, what to try next."""

import statistics
from collections import Counter
from collections.abc import Iterator

from data_pipeline.settings import format_bytes
from sweeps.findings import MICRO_BATCH, SEED, Findings, finite_loss
from sweeps.importances import importances
from sweeps.next_steps import next_steps
from sweeps.outcomes import Outcome
from sweeps.plots import loss_curves, memory_prediction_plot, micro_batch_plot, parameter_plots, time_plot
from sweeps.progress import clock, settings_in_words
from sweeps.report_blocks import (
    Block,
    Bullets,
    Cell,
    Facts,
    Long,
    Number,
    Paragraph,
    Picture,
    Section,
    Table,
    number,
    without_empty_columns,
)
from sweeps.search_space import format_setting, short_name
from sweeps.trial_records import LOSS, TrialRecord

_METRICS = {
    "holdout/perplexity": ("perplexity", ",.2f"),
    "holdout/bits_per_byte": ("bits a byte", ".4f"),
    "holdout/accuracy": ("accuracy", ".4f"),
    "holdout/top10_accuracy": ("top-10", ".4f"),
    "holdout/macro_f1": ("macro F1", ".4f"),
}


def summary_box(findings: Findings) -> list[Block]:
    """What a reader wants first: the best settings, their loss, where the model is."""
    best = findings.best
    facts: list[tuple[str, str]] = []
    if best is None:
        words = "No trial has completed yet." if _goes_on(findings) else "No trial completed: there is no best one."
        blocks: list[Block] = [Paragraph(words)]
    else:
        facts += [("best trial", best.name), ("holdout loss", f"{best.loss:.4f} nats per predicted token")]
        facts += [(short_name(path), format_setting(value)) for path, value in best.settings.items()]
        tied = sum(findings.is_tied_with_best(record) for record in findings.records)
        if tied:
            facts.append(("ties", f"{tied} more within the noise of the seeds"))
        facts.append(("model", str(findings.summary.get("model") or "not written yet")))
        blocks = []
    facts.append(("trials", _counted(findings)))
    return [*blocks, Facts(facts)]


def _goes_on(findings: Findings) -> bool:
    return findings.summary.get("status") not in ("finished", "interrupted")


def _counted(findings: Findings) -> str:
    open_ones = "running" if _goes_on(findings) else "unfinished"
    counts = Counter(str(record.outcome or open_ones).lower() for record in findings.records)
    words = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"
    refused = f"; {len(findings.refused)} proposals refused before launch" if findings.refused else ""
    return f"{words} (budget {findings.sweep.budget.trials}){refused}"


def ranking_section(findings: Findings) -> Section:
    """Trials with a loss, best first."""
    shown = [record for record in findings.records if record.loss is not None]
    if not shown:
        return Section("Ranking", [Paragraph("No trial has a holdout loss.")])
    metrics = [name for name in _METRICS if any(name in record.metrics for record in shown)]
    columns = [
        "rank", "trial", "outcome", "holdout loss", *(_METRICS[name][0] for name in metrics),
        *map(short_name, findings.paths), "tokens", "tokens/s", "tie",
    ]  # fmt: skip
    rows = [_ranking_row(findings, record, metrics) for record in shown]
    blocks: list[Block] = [without_empty_columns(Table(columns, rows, "ranking"))]
    blocks.append(
        Paragraph(
            "Losses are in nats per predicted token on the same holdout for every trial"
            + (", under the same masks at 15\u00a0%." if findings.sweep.objective.masked_lm else ".")
            + " Stopped trials stand behind completed ones, by how far they came: their final loss is not known."
        )
    )
    noise = findings.noise_nats
    blocks.append(
        Paragraph(
            f"Between seeds the loss has a standard deviation of {noise:.4f} nats; trials closer to the best than "
            f"{2 * 2**0.5 * noise:.4f} count as ties."
            if noise is not None
            else f"No settings were repeated with other seeds (`{SEED}`), so how far luck moves a loss is not known "
            "and ties are not marked."
        )
    )
    return Section("Ranking", blocks)


def _ranking_row(findings: Findings, record: TrialRecord, metrics: list[str]) -> list[Cell]:
    return [
        number(findings.rank(record), "d"),
        record.name,
        record.outcome or "running",
        number(record.loss),
        *(number(record.metrics.get(name), _METRICS[name][1]) for name in metrics),
        *(_setting_cell(findings, record, path) for path in findings.paths),
        number(record.tokens, ",d"),
        number(_speed(record), ",.0f"),
        "tie" if findings.is_tied_with_best(record) else "",
    ]


def _setting_cell(findings: Findings, record: TrialRecord, path: str) -> Cell:
    value = findings.setting(record, path)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value, ".3g" if isinstance(value, float) else "d")
    return "" if value is None else format_setting(value)


def _speed(record: TrialRecord) -> float | None:
    # Rounded as in trials.csv, so that the two files hold equal numbers.
    return None if record.tokens_per_s is None else round(record.tokens_per_s, 1)


def curves_section(findings: Findings) -> Section:
    """Loss over tokens, and what the best curve says."""
    picture = loss_curves(findings)
    if picture is None:
        return Section("Loss curves", [Paragraph("No trial has reported a loss.")])
    bands = " Grey bands span the seeds of one setting." if findings.repeats else ""
    caption = (
        "Loss over tokens of training; the leading five in colour, the others grey. The train loss is that of each "
        f"trial's own task and need not compare between trials; the holdout loss does.{bands}"
    )
    return Section("Loss curves", [Picture(picture, caption), *map(Paragraph, _curve_analysis(findings))])


def _curve_analysis(findings: Findings) -> Iterator[str]:
    if findings.best is None:
        return
    curve = findings.curves[findings.best.number].holdout
    if len(curve.tokens) < 2:
        return
    middle = len(curve.tokens) // 2
    yield (
        f"{findings.best.name}, the best: holdout loss {curve.losses[0]:.4f} at {curve.tokens[0]:,.0f} tokens, "
        f"{curve.losses[middle]:.4f} at {curve.tokens[middle]:,.0f}, {curve.losses[-1]:.4f} at {curve.tokens[-1]:,.0f}."
    )
    lowest = curve.losses.argmin()
    if lowest < len(curve.losses) - 1:
        yield (
            f"It was lowest on the way, {curve.losses[lowest]:.4f} at {curve.tokens[lowest]:,.0f} tokens: training "
            "longer made it worse on the holdout."
        )


def settings_section(findings: Findings) -> Section:
    """What each swept setting did to the loss."""
    picture = parameter_plots(findings)
    if not findings.paths:
        return Section("Settings", [Paragraph("Nothing was swept.")])
    blocks: list[Block] = []
    if picture is not None:
        caption = (
            "Holdout loss against each setting. Marks along the top did not fit in memory or diverged, and have no "
            "loss to show; a trial above the scale stands on its upper edge."
        )
        blocks.append(Picture(picture, caption))
    found = importances(findings)
    if isinstance(found, str):
        blocks.append(Paragraph(f"Importances are left out: {found}"))
    else:
        rows: list[list[Cell]] = [[f"{path}", number(share, ".1%", bar=share)] for path, share in found.items()]
        blocks.append(Table(["setting", "importance"], rows, "importances"))
        control = " The micro-batch changes nothing that is learnt: its share shows how much is chance."
        blocks.append(
            Paragraph(
                "Importance (PED-ANOVA): how sharply a setting sets the best quarter of the "
                f"{len(findings.completed)} completed trials apart." + (control if MICRO_BATCH in found else "")
            )
        )
    return Section("Settings", blocks)


def comparison_section(findings: Findings) -> Section:
    """The best trial beside those that the file asked for."""
    best = findings.best
    listed = [r for r in findings.completed if r.chosen_by == "start_with"]
    if best is None or not listed:
        why = "no trial completed" if best is None else "the file names no settings to start with, or none completed"
        return Section("Comparison with the baseline", [Paragraph(f"There is none: {why}.")])
    rows: list[list[Cell]] = []
    best_loss = finite_loss(best)
    assert best_loss is not None
    for record in sorted(listed, key=lambda r: r.number):
        loss = finite_loss(record)
        assert loss is not None
        rows.append([record.name, settings_in_words(record), number(loss), number(best_loss - loss, "+.4f")])
    words = (
        "The best trial is one of the settings that the file starts with: the search found nothing better."
        if best in listed
        else f"The best trial is {best.name} with {settings_in_words(best)}."
    )
    table = Table(["trial of start_with", "settings", "holdout loss", "best minus it"], rows, "comparison")
    return Section("Comparison with the baseline", [Paragraph(words), table])


def memory_section(findings: Findings) -> Section:
    """Micro-batch against speed and memory, prediction against measurement."""
    blocks: list[Block] = []
    picture = micro_batch_plot(findings)
    if picture is not None:
        caption = "Speed and peak memory of each trial against its micro-batch; other swept settings move both."
        blocks.append(Picture(picture, caption))
    blocks.append(_what_fits(findings))
    picture = memory_prediction_plot(findings)
    if picture is not None:
        ratios = [
            record.peak_memory_bytes / record.predicted_peak_memory_bytes
            for record in findings.records
            if record.peak_memory_bytes and record.predicted_peak_memory_bytes
        ]
        words = (
            f"Measured over predicted peak in {len(ratios)} trials: median {statistics.median(ratios):.3f}, from "
            f"{min(ratios):.3f} to {max(ratios):.3f}."
        )
        blocks.append(Picture(picture, words))
    rows: list[list[Cell]] = [
        [
            record.name,
            record.outcome or "running",
            _micro_batch_cell(record),
            number(record.micro_batch_size_used, "d"),
            _memory_cell(record.predicted_peak_memory_bytes),
            _memory_cell(record.peak_memory_bytes),
            _memory_cell(record.memory_limit_bytes),
            record.memory_verdict or "",
        ]
        for record in findings.records
    ]
    columns = ["trial", "outcome", "micro-batch asked", "used", "predicted", "measured", "limit", "verdict"]
    if rows:
        blocks.append(without_empty_columns(Table(columns, rows, "memory")))
    return Section("Memory and micro-batch", blocks)


def _micro_batch_cell(record: TrialRecord) -> Cell:
    asked = record.micro_batch_size_asked
    return asked if isinstance(asked, str) else number(asked, "d")


def _memory_cell(num_bytes: int | None) -> Cell:
    return "" if num_bytes is None else Number(num_bytes, format_bytes(num_bytes))


def _what_fits(findings: Findings) -> Block:
    sizes: set[int] = set()
    for record in findings.records:
        if isinstance(record.micro_batch_size_asked, int):
            sizes.add(record.micro_batch_size_asked)
        if record.micro_batch_size_used:
            sizes.add(record.micro_batch_size_used)
    refused = Counter(
        size for proposal in findings.refused if isinstance(size := proposal.settings.get(MICRO_BATCH), int)
    )
    rows: list[list[Cell]] = []
    for size in sorted(sizes | set(refused)):
        ran = [r for r in findings.records if r.micro_batch_size_used == size and r.tokens]
        out = [r for r in findings.of(Outcome.INFEASIBLE) if r.micro_batch_size_asked == size]
        speeds = [r.tokens_per_s for r in ran if r.tokens_per_s]
        peaks = [r.peak_memory_bytes for r in ran if r.peak_memory_bytes]
        ran_out = sum(record.memory_verdict == "ran out of memory" for record in out)
        rows.append(
            [
                number(size, "d"),
                number(len(ran), "d"),
                number(ran_out, "d"),
                number(len(out) - ran_out + refused[size], "d"),
                number(statistics.median(speeds) if speeds else None, ",.0f"),
                _memory_cell(max(peaks, default=None)),
            ]
        )
    if not rows:
        return Paragraph("No trial has run with a known micro-batch.")
    columns = ["micro-batch", "ran", "ran out of memory", "never launched", "median tokens/s", "largest peak"]
    return without_empty_columns(Table(columns, rows, "what-fits"))


def time_section(findings: Findings) -> Section:
    """Forward, backward, data, optimizer; share of the hardware's rate."""
    timed = [record for record in findings.records if findings.curves[record.number].step_ms]
    if not timed:
        return Section("Time", [Paragraph("No trial has reported where its time went.")])
    blocks: list[Block] = []
    picture = time_plot(findings)
    if picture is not None:
        blocks.append(Picture(picture, "Where the time of 1,000 tokens goes, in the leading trials."))
    # One worker alone exchanges nothing: a column of zeros.
    seen = {stretch for r in timed for stretch, ms in findings.curves[r.number].step_ms.items() if ms > 0}
    stretches = [s for s in ("forward", "backward", "optimizer", "data", "exchange") if s in seen]
    rows: list[list[Cell]] = []
    for record in timed:
        curves = findings.curves[record.number]
        rows.append(
            [
                record.name,
                *(number(curves.step_ms.get(stretch), ",.2f") for stretch in stretches),
                number(_speed(record), ",.0f"),
                number(curves.share_of_matmul_rate, ".1%"),
                number(round(record.training_s, 3), ",.1f"),
            ]
        )
    columns = ["trial", *(f"{stretch}, ms" for stretch in stretches), "tokens/s", "of matmul rate", "training, s"]
    blocks.append(without_empty_columns(Table(columns, rows, "time")))
    blocks.append(
        Paragraph(
            "Milliseconds are means a step over the whole trial. The rate is that of the model's own floating-point "
            "operations, beside that of large matrix products measured on the same device."
        )
    )
    return Section("Time", blocks)


def noise_section(findings: Findings) -> Section:
    """Gradient noise scale against the batch."""
    rows: list[list[Cell]] = []
    for record in findings.records:
        scale = findings.curves[record.number].noise_scale_rows
        if scale is not None:
            batch = int(findings.setting(record, "training.batch_size"))
            ratio = number(batch / scale if scale else None, ",.2f")
            rows.append([record.name, number(batch, ",d"), number(scale, ",.1f"), ratio])
    if not rows:
        return Section("Critical batch size", [Paragraph("No trial has reported a gradient noise scale.")])
    words = (
        "The gradient noise scale estimates the critical batch size: well below it a larger batch saves steps at "
        "little cost in tokens, well above it tokens are wasted (McCandlish et al., arXiv:1812.06162). It grows as the "
        "loss falls."
    )
    table = Table(["trial", "batch size, rows", "noise scale, rows", "batch / scale"], rows, "noise")
    return Section("Critical batch size", [table, Paragraph(words)])


def outcomes_section(findings: Findings) -> Section:
    """How every trial ended, with its reason."""
    if not findings.records:
        return Section("Trials", [Paragraph("No trial has started.")])
    rows: list[list[Cell]] = [
        [
            number(rank, "d"),
            record.name,
            record.outcome or "running",
            number(record.tokens, ",d"),
            number(round(record.training_s, 3), ",.1f"),
            number(record.interruptions, "d") if record.interruptions else "",
            record.chosen_by,
            Long(record.reason),
        ]
        for rank, record in enumerate(findings.records, start=1)
    ]
    columns = ["rank", "trial", "outcome", "tokens", "training, s", "interruptions", "chosen by", "reason"]
    return Section("Trials", [without_empty_columns(Table(columns, rows, "trials"))])


def errors_section(findings: Findings) -> Section:
    """What went wrong, by kind."""
    wrong = (Outcome.FAILED, Outcome.DIVERGED, Outcome.INFEASIBLE, Outcome.INTERRUPTED)
    rows: list[list[Cell]] = [
        [record.name, outcome, settings_in_words(record), Long(record.reason)]
        for outcome in wrong
        for record in findings.of(outcome)
    ]
    if not rows:
        return Section("Errors", [Paragraph("None: no trial failed, diverged, ran out of memory or was interrupted.")])
    return Section("Errors", [Table(["trial", "outcome", "settings", "reason"], rows, "errors")])


def waste_section(findings: Findings) -> Section:
    """Seconds by outcome, what was stopped early, what was never launched."""
    total = sum(record.training_s for record in findings.records)
    rows: list[list[Cell]] = []
    for outcome in (*Outcome, None):
        records = findings.of(outcome)
        if records:
            seconds = sum(record.training_s for record in records)
            rows.append(
                [
                    outcome or "running",
                    number(len(records), "d"),
                    number(round(seconds, 3), ",.1f"),
                    number(seconds / total if total else None, ".1%"),
                    number(sum(record.tokens for record in records), ",d"),
                ]
            )
    blocks: list[Block] = []
    if rows:
        blocks.append(Table(["outcome", "trials", "training, s", "share", "tokens"], rows, "waste"))
    blocks += map(Paragraph, _waste_in_words(findings, total))
    if findings.refused:
        verdicts = Counter(refusal.verdict for refusal in findings.refused)
        counted: list[list[Cell]] = [
            [verdict, number(count, "d"), next(r.reason for r in findings.refused if r.verdict == verdict)]
            for verdict, count in verdicts.items()
        ]
        blocks.append(Table(["refused before launch", "proposals", "for one"], counted, "refused"))
    return Section("What was wasted", blocks)


def _waste_in_words(findings: Findings, total: float) -> Iterator[str]:
    wasted = (Outcome.INFEASIBLE, Outcome.DIVERGED, Outcome.FAILED, Outcome.INTERRUPTED)
    lost = sum(record.training_s for outcome in wasted for record in findings.of(outcome))
    if total:
        yield (
            f"{clock(lost)} of {clock(total)} of training ({lost / total:.1%}) went into trials that did not fit, "
            "diverged, failed or were interrupted."
        )
    stopped = findings.of(Outcome.STOPPED)
    if stopped:
        asked = findings.sweep.budget.tokens_per_trial * len(stopped)
        saved = asked - sum(record.tokens for record in stopped)
        yield f"Early stopping of {len(stopped)} trials left {saved:,} tokens untrained ({saved / asked:.0%})."
    refused = len(findings.refused)
    if refused:
        yield f"{refused} proposals were refused before launch and cost no training."


def problems_section(findings: Findings) -> Section:
    """What a reader should distrust."""
    items = list(_problems(findings))
    return Section("Problems found", [Bullets(items) if items else Paragraph("None that the figures show.")])


def _problems(findings: Findings) -> Iterator[str]:
    shrunk = [
        r.name
        for r in findings.records
        if isinstance(r.micro_batch_size_asked, int)
        and r.micro_batch_size_used
        and r.micro_batch_size_used < r.micro_batch_size_asked
    ]
    if shrunk:
        yield f"{', '.join(shrunk)} ran with a smaller micro-batch than asked for (the batch or the memory set it)."
    for record in findings.records:
        predicted, measured = record.predicted_peak_memory_bytes, record.peak_memory_bytes
        if predicted and measured and abs(measured / predicted - 1) > 0.1 and record.outcome is not Outcome.INFEASIBLE:
            yield (
                f"{record.name}: memory measured {format_bytes(measured)}, predicted {format_bytes(predicted)}: more "
                "than 10 % off."
            )
    not_finite = [r.name for r in findings.records if r.loss is not None and finite_loss(r) is None]
    if not_finite:
        yield f"{', '.join(not_finite)}: the last holdout loss is not a finite number."
    interrupted = [record.name for record in findings.records if record.interruptions]
    if interrupted:
        yield f"{', '.join(interrupted)} lost their workers on the way and went on from a checkpoint."
    if findings.manifest is not None and findings.manifest.tokenizer_report.unknown_rate > 0.01:
        yield f"{findings.manifest.tokenizer_report.unknown_rate:.1%} of the corpus's tokens are the unknown token."


def next_section(findings: Findings) -> Section:
    """What to try next."""
    steps = next_steps(findings)
    nothing = "Nothing in the figures asks for a change of the sweep."
    return Section("What to try next", [Bullets(steps) if steps else Paragraph(nothing)])


def conclusions_section(findings: Findings) -> Section:
    """The result in sentences."""
    best = findings.best
    if best is None:
        return Section("Conclusions", [Paragraph("None can be drawn: no trial completed.")])
    setting = f" with {settings_in_words(best)}" if best.settings else ""
    items = [f"{best.name}{setting} has the smallest holdout loss of {len(findings.completed)} completed trials: "
             f"{best.metrics[LOSS]:.4f} nats per predicted token."]  # fmt: skip
    found = importances(findings)
    if not isinstance(found, str):
        path, share = next(iter(found.items()))
        items.append(f"`{path}` mattered most ({share:.0%} of the importance).")
    return Section("Conclusions", [Bullets(items)])
