"""Figures of speed, memory and time, each an SVG element; None without data."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sweeps.analysis.sweep_findings import Findings
from sweeps.figures.plot_style import COLORS, PAGE_WIDTH, SERIES, bytes_axis, new_figure, page_style, to_svg
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord


def micro_batch_plot(findings: Findings) -> str | None:
    """Speed and peak memory against the micro-batch; the limit as a line, infeasible trials as crosses."""
    ran = [record for record in findings.records if record.micro_batch_size_used and record.tokens_per_s]
    if not ran:
        return None
    with page_style():
        figure = new_figure(PAGE_WIDTH, 3.3)
        speed_axes, memory_axes = figure.subplots(1, 2)
        speeds = [(r.micro_batch_size_used or 0, r.tokens_per_s or 0.0) for r in ran]
        _scatter(speed_axes, speeds, s=26, color=SERIES[0], alpha=0.85)
        speed_axes.set(title="speed", ylabel="tokens/s", ylim=(0, 1.1 * max(r.tokens_per_s or 0 for r in ran)))
        speed_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _draw_memory(memory_axes, findings, ran)
        used = [r.micro_batch_size_used for r in ran] + [asked for asked, _ in _ran_out(findings)]
        for axes in (speed_axes, memory_axes):
            _micro_batch_axis(axes, sorted({size for size in used if size is not None}))
        return to_svg(figure, "micro-batch")


def _scatter(axes: Axes, pairs: Sequence[tuple[float, float]], **style: Any) -> None:
    axes.scatter([x for x, _ in pairs], [y for _, y in pairs], **style)


def _draw_memory(axes: Axes, findings: Findings, ran: Sequence[TrialRecord]) -> None:
    measured = [(r.micro_batch_size_used or 0, r.peak_memory_bytes) for r in ran if r.peak_memory_bytes]
    spots = [(size, r.predicted_peak_memory_bytes or r.memory_limit_bytes) for size, r in _ran_out(findings)]
    known = [(size, peak) for size, peak in spots if peak]
    limits = {record.memory_limit_bytes for record in findings.records if record.memory_limit_bytes}
    peaks = [peak for _, peak in (*measured, *known)]
    if not peaks:
        axes.set_visible(False)
        return
    if measured:
        _scatter(axes, measured, s=26, color=SERIES[0], alpha=0.85, label="measured peak")
    if known:
        _scatter(axes, known, s=34, marker="x", color=COLORS["infeasible"], label="did not fit (predicted)")
    for limit in limits:
        axes.axhline(limit, color=COLORS["failed"], linewidth=1.2, linestyle="--", label="limit")
    axes.set(title="memory of one worker")
    # On a linear axis small models far below a large limit would all lie at zero.
    bytes_axis(axes, "y", min(peaks), max(*peaks, *limits, 1), is_log=max(limits, default=0) > 16 * max(peaks))
    axes.legend(loc="best")


def _ran_out(findings: Findings) -> list[tuple[int, TrialRecord]]:
    return [
        (record.micro_batch_size_asked, record)
        for record in findings.of(Outcome.INFEASIBLE)
        if isinstance(record.micro_batch_size_asked, int)
        and (record.predicted_peak_memory_bytes or record.memory_limit_bytes)
    ]


def _micro_batch_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(_spread(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("micro-batch, rows")


def _spread(sizes: Sequence[int]) -> list[int]:
    """Ticks at used sizes, without overlaps."""
    ticks: list[int] = []
    for size in sizes:
        if not ticks or size / ticks[-1] >= (sizes[-1] / sizes[0]) ** 0.07:
            ticks.append(size)
    return ticks


def memory_prediction_plot(findings: Findings) -> str | None:
    """Measured against predicted peak memory."""
    pairs = [
        (record.predicted_peak_memory_bytes or 0, record.peak_memory_bytes or 0)
        for record in findings.records
        if record.prediction_error is not None
    ]
    if not pairs:
        return None
    with page_style():
        figure = new_figure(4.8, 3.6)
        axes = figure.subplots()
        high = 1.08 * max(max(pair) for pair in pairs)
        axes.plot([0, high], [0, high], color=COLORS["muted"], linewidth=1, label="exact prediction")
        _scatter(axes, pairs, s=26, color=SERIES[0], alpha=0.85, label="trial")
        axes.set(xlabel="predicted peak", ylabel="measured peak")
        bytes_axis(axes, "x", 0, high)
        bytes_axis(axes, "y", 0, high)
        axes.legend(loc="upper left")
        return to_svg(figure, "memory-prediction")


def time_plot(findings: Findings) -> str | None:
    """Time per token by stretch of the step, in the leading trials."""
    timed = [record for record in findings.records if _time_a_token(findings, record)][:12]
    if not timed:
        return None
    with page_style():
        figure = new_figure(PAGE_WIDTH * 0.8, 1.0 + 0.28 * len(timed))
        axes = figure.subplots()
        left = np.zeros(len(timed))
        for index, stretch in enumerate(("forward", "backward", "optimizer", "data", "exchange")):
            widths = np.array([_time_a_token(findings, record).get(stretch, 0.0) for record in timed])
            if widths.any():
                axes.barh(range(len(timed)), widths, left=left, height=0.7, color=SERIES[index], label=stretch)
            left += widths
        axes.set_yticks(range(len(timed)), [record.name for record in timed])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("ms per 1,000 tokens")
        figure.legend(loc="outside upper left", ncols=5)
        return to_svg(figure, "time")


def _time_a_token(findings: Findings, record: TrialRecord) -> dict[str, float]:
    """Milliseconds per 1,000 tokens in each stretch: shares of the step time, scaled to the measured speed."""
    step_ms = findings.curves[record.number].step_ms
    total = sum(step_ms.values())
    if total <= 0 or not record.tokens_per_s:
        return {}
    return {stretch: ms / total * 1e6 / record.tokens_per_s for stretch, ms in step_ms.items()}


def timeline(findings: Findings) -> str | None:
    """Start and end of each trial, in order of trial numbers."""
    spans = [(record, *span) for record in findings.records if (span := _span(record)) is not None]
    if not spans:
        return None
    spans.sort(key=lambda item: item[0].number)
    first = min(begin for _, begin, _ in spans)
    last = max(end or begin for _, begin, end in spans)
    unit, scale = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if last - first >= 2 * s or s == 1)
    with page_style():
        figure = new_figure(PAGE_WIDTH, min(8.0, 1.0 + 0.2 * len(spans)))
        axes = figure.subplots()
        for row, (record, begin, end) in enumerate(spans):
            name = (record.outcome or "running").lower()
            # A trial of less than a second stays visible.
            width = max((last if end is None else end) - begin, 0.004 * (last - first), 0.05)
            axes.barh(row, width / scale, left=(begin - first) / scale, height=0.75, color=COLORS[name], label=name)
        axes.invert_yaxis()
        every = -(-len(spans) // 30)
        rows = range(0, len(spans), every)
        axes.set_yticks(rows, [spans[row][0].name for row in rows])
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{unit} since the first trial started")
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside upper left", ncols=7)
        return to_svg(figure, "timeline")


def _span(record: TrialRecord) -> tuple[float, float | None] | None:
    begin, end = _clock(record.started_at), _clock(record.ended_at)
    return None if begin is None else (begin, end)


def _clock(moment: str) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None
