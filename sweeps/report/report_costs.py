"""Sections of a report on cost: memory, time, critical batch size, outcomes, waste, problems."""

import statistics
from collections import Counter
from collections.abc import Iterator

from data_pipeline.schema.settings import clock, format_bytes
from sweeps.analysis.result_tables import calibration, memory_margin
from sweeps.analysis.sweep_findings import Findings, finite_loss, speed
from sweeps.figures.cost_plots import memory_prediction_plot, micro_batch_plot, time_plot
from sweeps.figures.frontier_plot import frontier_in_words, frontier_plot
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import MemoryVerdict, TrialRecord
from sweeps.report.report_blocks import (
    Block,
    Bullets,
    Cell,
    Long,
    Number,
    Paragraph,
    Section,
    Table,
    drawn,
    number,
    without_empty_columns,
)
from sweeps.search_space.distribution import settings_in_words
from sweeps.settings.setting_paths import MICRO_BATCH


def memory_section(findings: Findings) -> Section:
    """Micro-batch against speed and memory, prediction against measurement."""
    blocks: list[Block] = []
    blocks += drawn("the memory frontier", lambda: frontier_plot(findings), lambda: frontier_in_words(findings))
    caption = "Speed and peak memory of each trial against its micro-batch. Other swept settings change both."
    blocks += drawn("speed against micro-batch", lambda: micro_batch_plot(findings), lambda: caption)
    blocks.append(_what_fits(findings))
    blocks += drawn(
        "measured against predicted memory",
        lambda: memory_prediction_plot(findings),
        lambda: _calibration_in_words(findings),
    )
    rows: list[list[Cell]] = [
        [
            record.name,
            record.outcome or "running",
            _micro_batch_cell(record),
            number(record.micro_batch_size_used, "d"),
            _memory_cell(record.predicted_peak_memory_bytes),
            _memory_cell(record.peak_memory_bytes),
            _memory_cell(record.memory_limit_bytes),
            number(memory_margin(record.peak_memory_bytes, record), ".1%"),
            number(record.out_of_memory_events or None, "d"),
            record.memory_verdict or "",
        ]
        for record in findings.records
    ]
    columns = ["trial", "outcome", "micro-batch asked", "used", "predicted", "measured", "limit", "margin left"]
    columns += ["times out of memory", "verdict"]
    if rows:
        blocks.append(without_empty_columns(Table(columns, rows, "memory")))
    return Section("Memory and micro-batch", blocks)


def _calibration_in_words(findings: Findings) -> str:
    found = calibration(findings.records)
    return (
        f"Calibration: the measured peak is {found['median_relative_error']:.2%} off the predicted one in the "
        f"median of {found['calibrated_trials']} trials, {found['largest_relative_error']:.2%} at most. Trials "
        "that ran out of memory are not counted: their peak is unknown."
    )


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
        ran_out = sum(record.memory_verdict is MemoryVerdict.RAN_OUT for record in out)
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
        return Paragraph("No trial ran with a known micro-batch.")
    columns = ["micro-batch", "ran", "ran out of memory", "never launched", "median tokens/s", "largest peak"]
    return without_empty_columns(Table(columns, rows, "what-fits"))


def time_section(findings: Findings) -> Section:
    """Time of forward, backward, optimizer and data; share of the hardware's rate."""
    timed = [record for record in findings.records if findings.curves[record.number].step_ms]
    if not timed:
        return Section("Time", [Paragraph("No trial reported the times of its steps.")])
    blocks: list[Block] = []
    caption = "Time for 1,000 tokens by stretch of the step, in the leading trials."
    blocks += drawn("time by stretch", lambda: time_plot(findings), lambda: caption)
    # A single worker exchanges no gradients: its column would be zeros.
    seen = {stretch for r in timed for stretch, ms in findings.curves[r.number].step_ms.items() if ms > 0}
    stretches = [s for s in ("forward", "backward", "optimizer", "data", "exchange") if s in seen]
    rows: list[list[Cell]] = []
    for record in timed:
        curves = findings.curves[record.number]
        rows.append(
            [
                record.name,
                *(number(curves.step_ms.get(stretch), ",.2f") for stretch in stretches),
                number(speed(record), ",.0f"),
                number(curves.share_of_matmul_rate, ".1%"),
                number(round(record.training_s, 3), ",.1f"),
            ]
        )
    columns = ["trial", *(f"{stretch}, ms" for stretch in stretches), "tokens/s", "of matmul rate", "training, s"]
    blocks.append(without_empty_columns(Table(columns, rows, "time")))
    rated = any(findings.curves[record.number].share_of_matmul_rate is not None for record in timed)
    blocks.append(
        Paragraph(
            "Milliseconds are means per step over the whole trial. "
            + (
                "The matmul rate is the model's floating-point rate over that of large matrix products on the same "
                "device."
                if rated
                else "No trial trained long enough to measure its share of the hardware's rate."
            )
        )
    )
    return Section("Time", blocks)


def noise_section(findings: Findings) -> Section:
    """Gradient noise scale against the batch size."""
    rows: list[list[Cell]] = []
    for record in findings.records:
        scale = findings.curves[record.number].noise_scale_rows
        if scale is not None:
            batch = int(findings.setting(record, "training.batch_size"))
            ratio = number(batch / scale if scale else None, ",.2f")
            rows.append([record.name, number(batch, ",d"), number(scale, ",.1f"), ratio])
    if not rows:
        return Section("Critical batch size", [Paragraph("No trial reported a gradient noise scale.")])
    words = (
        "The gradient noise scale estimates the critical batch size. Well below it a larger batch saves steps at "
        "little cost in tokens; well above it a larger batch wastes tokens (McCandlish et al., arXiv:1812.06162). It "
        "grows as the loss falls."
    )
    swept = findings.sweep.search.get("training.batch_size")
    scales = sorted(s for r in findings.completed if (s := findings.curves[r.number].noise_scale_rows) is not None)
    if swept is not None and scales:
        words += (
            f" Batch sizes swept: {swept}; noise scale at the end of the completed trials: {scales[0]:,.0f} to "
            f"{scales[-1]:,.0f} rows, {statistics.median(scales):,.0f} in the median."
        )
    table = Table(["trial", "batch size, rows", "noise scale, rows", "batch / scale"], rows, "noise")
    return Section("Critical batch size", [table, Paragraph(words)])


def outcomes_section(findings: Findings) -> Section:
    """The outcome of every trial, with its reason."""
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
    """Trials that failed, diverged, did not fit or were interrupted, by outcome."""
    wrong = (Outcome.FAILED, Outcome.DIVERGED, Outcome.INFEASIBLE, Outcome.INTERRUPTED)
    rows: list[list[Cell]] = [
        [record.name, outcome, settings_in_words(record.settings), Long(record.reason)]
        for outcome in wrong
        for record in findings.of(outcome)
    ]
    if not rows:
        return Section("Errors", [Paragraph("No trial failed, diverged, ran out of memory or was interrupted.")])
    return Section("Errors", [Table(["trial", "outcome", "settings", "reason"], rows, "errors")])


def waste_section(findings: Findings) -> Section:
    """Seconds by outcome, tokens saved by early stopping, proposals never launched."""
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
        asked = findings.sweep.budget.trial_tokens * len(stopped)
        saved = asked - sum(record.tokens for record in stopped)
        yield f"Early stopping ended {len(stopped)} trials and saved {saved:,} of their tokens ({saved / asked:.0%})."
    refused = len(findings.refused)
    if refused:
        yield f"{refused} proposals were refused before launch. They cost no training."


def problems_section(findings: Findings) -> Section:
    """Faults that weaken the results."""
    items = list(_problems(findings))
    return Section("Problems found", [Bullets(items) if items else Paragraph("The figures show no problem.")])


def _problems(findings: Findings) -> Iterator[str]:
    shrunk = [
        r.name
        for r in findings.records
        if isinstance(r.micro_batch_size_asked, int)
        and r.micro_batch_size_used
        and r.micro_batch_size_used < r.micro_batch_size_asked
    ]
    if shrunk:
        yield (
            f"{', '.join(shrunk)} ran with a smaller micro-batch than asked for; the batch size or the memory limited "
            "it."
        )
    for record in findings.records:
        if record.prediction_error is not None and abs(record.prediction_error) > 0.1:
            yield (
                f"{record.name}: memory measured {format_bytes(record.peak_memory_bytes or 0)}, predicted "
                f"{format_bytes(record.predicted_peak_memory_bytes or 0)}. The error is above 10 %."
            )
    not_finite = [r.name for r in findings.records if r.loss is not None and finite_loss(r) is None]
    if not_finite:
        yield f"{', '.join(not_finite)}: the last holdout loss is not finite."
    interrupted = [record.name for record in findings.records if record.interruptions]
    if interrupted:
        yield f"{', '.join(interrupted)} lost their workers and resumed from a checkpoint."
    if findings.manifest is not None and findings.manifest.tokenizer_report.unknown_rate > 0.01:
        yield (
            f"{findings.manifest.tokenizer_report.unknown_rate:.1%} of the tokens of the corpus are the unknown token."
        )
