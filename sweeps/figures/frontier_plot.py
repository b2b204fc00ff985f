"""Figure of the memory frontier: micro-batch against shape, the predicted frontier and the fate of each request."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from pydantic import ValidationError

from data_pipeline.schema.settings import format_bytes
from sweeps.analysis.sweep_findings import Findings
from sweeps.figures.plot_style import COLORS, PAGE_WIDTH, SERIES, new_figure, page_style, to_svg
from sweeps.memory_knowledge.frontier_map import FrontierMap
from sweeps.memory_knowledge.memory_frontier import micro_batch_of
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import MemoryVerdict, RefusedProposal, TrialRecord
from sweeps.search_space.distribution import format_setting, short_name

_RAN = "ran"
_NEVER_LAUNCHED = (MemoryVerdict.REFUSED, MemoryVerdict.SKIPPED)
_FATES: dict[str, dict[str, Any]] = {
    _RAN: {"marker": "o", "color": SERIES[0], "s": 26, "alpha": 0.85},
    MemoryVerdict.RAN_OUT: {"marker": "x", "color": COLORS["failed"], "s": 40, "linewidths": 1.8},
    MemoryVerdict.REFUSED: {"marker": "^", "edgecolors": COLORS["infeasible"], "facecolors": "none", "s": 26},
    MemoryVerdict.SKIPPED: {"marker": "s", "edgecolors": COLORS["diverged"], "facecolors": "none", "s": 24},
}
"""Fate of a micro-batch to its mark."""
_WIDTH_OF_A_CHOICE = 0.4
"""Half of the width on the axis of a value of a choice."""


@dataclass(frozen=True)
class _Spot:
    """One requested or used micro-batch."""

    value: Any
    """Value on the axis."""
    rows: int
    fate: str
    number: int
    """Position in the order of requests; it separates marks that would overlap."""


def frontier_plot(findings: Findings) -> str | None:
    """Micro-batch against the setting that changes memory most; None without a known micro-batch."""
    frontier = findings.frontier
    spots = [] if frontier is None else list(_spots(findings, frontier.axis))
    if frontier is None or not spots:
        return None
    with page_style():
        figure = new_figure(PAGE_WIDTH, 3.8)
        axes = figure.subplots()
        positions = _Axis(findings, frontier)
        _draw_frontier(axes, frontier, positions, top=2 * max(spot.rows for spot in spots))
        for fate, style in _FATES.items():
            those = [spot for spot in spots if spot.fate == fate]
            if those:
                x = [positions.of(spot.value, spot.number) for spot in those]
                axes.scatter(x, [spot.rows for spot in those], label=f"{fate} ({len(those)})", zorder=3, **style)
        positions.set_axis(axes)
        sizes = sorted({spot.rows for spot in spots})
        axes.set_yscale("log", base=2)
        axes.set_ylim(sizes[0] / 1.6, sizes[-1] * 1.6)
        axes.yaxis.set_major_locator(FixedLocator([2**power for power in range(sizes[-1].bit_length() + 1)]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylabel("micro-batch, rows")
        figure.legend(loc="outside upper left", ncols=5)
        return to_svg(figure, "frontier")


def _spots(findings: Findings, axis: str | None) -> Iterator[_Spot]:
    trials = sorted(findings.records, key=lambda record: record.number)
    for number, record in enumerate(trials, start=1):
        value = findings.setting(record, axis) if axis else ""
        if record.tokens and record.micro_batch_size_used and record.outcome is not Outcome.INFEASIBLE:
            yield _Spot(value, record.micro_batch_size_used, _RAN, number)
        for size in record.out_of_memory_micro_batches:
            yield _Spot(value, size, MemoryVerdict.RAN_OUT, number)
        if record.memory_verdict in _NEVER_LAUNCHED:
            yield from _asked(findings, record, value, record.memory_verdict, number)
    for number, refused in enumerate(findings.refused, start=len(trials) + 1):
        value = findings.setting(refused, axis) if axis else ""
        yield from _asked(findings, refused, value, refused.verdict, number)


def _asked(
    findings: Findings, one: TrialRecord | RefusedProposal, value: Any, verdict: str, number: int
) -> Iterator[_Spot]:
    try:
        run = findings.sweep.run_config(one.settings)
    except ValidationError:
        return  # The settings are from an older version of the sweep file.
    rows = micro_batch_of(run, findings.sweep.resources.workers_per_trial)
    if rows is not None:
        yield _Spot(value, rows, verdict, number)


class _Axis:
    """Positions of values on the axis: numbers of a range as they are, values of a choice side by side."""

    def __init__(self, findings: Findings, frontier: FrontierMap) -> None:
        self._path = frontier.axis
        distribution = None if frontier.axis is None else findings.sweep.search.get(frontier.axis)
        self.is_range = distribution is not None and distribution.kind != "choice"
        self._is_log = distribution is not None and distribution.kind.startswith("log")
        self._values = [] if self.is_range else [""] if distribution is None else list(distribution.extremes())
        if not self.is_range and all(isinstance(value, int | float) for value in self._values):
            self._values.sort()

    def of(self, value: Any, number: int = 0) -> float:
        """Position of a value; marks of one choice are spread around it."""
        if self.is_range:
            return float(value)
        if value not in self._values:
            self._values.append(value)
        # Steps of the golden ratio never overlap.
        spread = (number * 0.618034) % 1 - 0.5 if number else 0.0
        return self._values.index(value) + 1.6 * _WIDTH_OF_A_CHOICE * spread

    def set_axis(self, axes: Axes) -> None:
        """Set the ticks and the name of the setting."""
        if self._is_log:
            axes.set_xscale("log")
        if not self.is_range:
            axes.set_xticks(range(len(self._values)), [format_setting(value) for value in self._values])
            axes.set_xlim(-0.6, len(self._values) - 0.4)
            axes.grid(visible=False, axis="x")
        axes.set_xlabel("" if self._path is None else short_name(self._path).replace("_", " "))


def _draw_frontier(axes: Axes, frontier: FrontierMap, positions: _Axis, *, top: float) -> None:
    style: dict[str, Any] = {"color": COLORS["failed"], "linewidth": 1.3, "linestyle": "--"}
    label = f"predicted frontier of {format_bytes(frontier.capacity_bytes)}"
    known = [point for point in frontier.border if point.micro_batch_size > 0]
    if positions.is_range:
        points = sorted((float(point.value), point.micro_batch_size) for point in known)
        if points:
            _shade(axes, [x for x, _ in points], [rows for _, rows in points], top)
            axes.plot([x for x, _ in points], [rows for _, rows in points], label=label, **style)
        return
    for index, point in enumerate(known):
        middle, rows = positions.of(point.value), [point.micro_batch_size] * 2
        ends = [middle - _WIDTH_OF_A_CHOICE, middle + _WIDTH_OF_A_CHOICE]
        _shade(axes, ends, rows, top)
        axes.plot(ends, rows, label=label if index == 0 else None, **style)


def _shade(axes: Axes, x: list[float], rows: list[float], top: float) -> None:
    axes.fill_between(x, rows, max(top, *rows), color=COLORS["failed"], alpha=0.06, linewidth=0)


def frontier_in_words(findings: Findings) -> str:
    """The caption of the frontier figure."""
    frontier = findings.frontier
    assert frontier is not None
    others = [short_name(path) for path in frontier.others]
    limit = f" ({frontier.learnt})" if frontier.learnt else ", the limit"
    words = (
        "Memory frontier: each requested micro-batch and its fate. Above the line the predicted peak exceeds "
        f"{format_bytes(frontier.capacity_bytes)}{limit}, for steps of several micro-batches"
    )
    words += f" and the file's values of {', '.join(others)}." if others else "."
    earlier = [one for one in frontier.observations if one.trial.rpartition("/")[0] != frontier.source]
    if earlier:
        words += f" {len(earlier)} observations on {frontier.device} are from other sweeps."
    return words
