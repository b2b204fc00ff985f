"""Figures of losses, each an SVG element; None without data."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sweeps.analysis.sweep_findings import Findings, finite_loss
from sweeps.analysis.trial_curves import Curve
from sweeps.figures.plot_style import COLORS, PAGE_WIDTH, SERIES, new_figure, page_style, to_svg, tokens_axis
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord
from sweeps.search_space.distribution import Distribution, format_setting, short_name

_NUM_LEADERS = 5


def loss_curves(findings: Findings) -> str | None:
    """Train and holdout loss of every trial over tokens; the leaders in colour, seeds as bands."""
    if all(curves.train.is_empty and curves.holdout.is_empty for curves in findings.curves.values()):
        return None
    with page_style():
        figure = new_figure(PAGE_WIDTH, 3.7)
        train_axes, holdout_axes, end_axes = figure.subplots(1, 3)
        leaders = [r for r in findings.records if not findings.curves[r.number].holdout.is_empty][:_NUM_LEADERS]
        for record in (r for r in findings.records if r not in leaders):
            style = {"color": COLORS["faint"], "linewidth": 0.9, "zorder": 1}
            _draw(train_axes, findings.curves[record.number].train, **style)
            for axes in (holdout_axes, end_axes):
                _draw(axes, findings.curves[record.number].holdout, **style)
        for index, record in reversed(list(enumerate(leaders))):
            style = {"color": SERIES[index], "zorder": 3 + len(leaders) - index}
            curves = findings.curves[record.number]
            _draw(train_axes, curves.train, linewidth=1.0, **style)
            for axes in (holdout_axes, end_axes):
                _draw(axes, curves.holdout, marker="o", markersize=3, label=record.name, **style)
        _draw_bands(train_axes, [[findings.curves[r.number].train for r in group] for group in findings.repeats])
        for axes in (holdout_axes, end_axes):
            _draw_bands(axes, [[findings.curves[r.number].holdout for r in group] for group in findings.repeats])
        train_axes.set(title="train", ylabel="loss, nats per predicted token")
        holdout_axes.set(title="holdout")
        end_axes.set(title="holdout, last half of the leaders")
        for axes in (train_axes, holdout_axes, end_axes):
            tokens_axis(axes)
        _limit_losses((train_axes, holdout_axes), findings)
        _limit_to_last_half(end_axes, [findings.curves[record.number].holdout for record in leaders])
        if leaders:
            handles, labels = holdout_axes.get_legend_handles_labels()
            figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=_NUM_LEADERS)
        return to_svg(figure, "loss-curves")


def _draw(axes: Axes, curve: Curve, **style: Any) -> None:
    if not curve.is_empty:
        axes.plot(curve.tokens, curve.losses, **style)


def _draw_bands(axes: Axes, groups: Sequence[Sequence[Curve]]) -> None:
    """Draw a band from the lowest to the highest loss of each group, over the tokens common to its curves."""
    for group in groups:
        curves = [curve for curve in group if not curve.is_empty]
        if len(curves) < 2:
            continue
        low, high = max(c.tokens[0] for c in curves), min(c.tokens[-1] for c in curves)
        tokens = np.unique(np.concatenate([c.tokens for c in curves]))
        tokens = tokens[(tokens >= low) & (tokens <= high)]
        losses = np.stack([np.interp(tokens, c.tokens, c.losses) for c in curves])
        axes.fill_between(
            tokens, losses.min(0), losses.max(0), color=COLORS["muted"], alpha=0.25, linewidth=0, zorder=2
        )


def _limit_losses(both: Sequence[Axes], findings: Findings) -> None:
    # A diverging trial would flatten all others, so the axis ends at the highest first holdout loss.
    first = [c.holdout.losses[0] for c in findings.curves.values() if not c.holdout.is_empty]
    lowest = [c.losses.min() for pair in findings.curves.values() for c in (pair.train, pair.holdout) if not c.is_empty]
    if first and max(first) > min(lowest):
        room = 0.05 * (max(first) - min(lowest))
        for axes in both:
            axes.set_ylim(min(lowest) - room, max(first) + room)


def _limit_to_last_half(axes: Axes, leaders: Sequence[Curve]) -> None:
    if not leaders:
        return
    half = max(curve.tokens[-1] for curve in leaders) / 2
    losses = [loss for curve in leaders for loss in curve.losses[curve.tokens >= half]]
    room = 0.08 * (max(losses) - min(losses)) or 0.01
    axes.set_xlim(0.95 * half, 2.05 * half)
    axes.set_ylim(min(losses) - room, max(losses) + room)


def parameter_plots(findings: Findings) -> str | None:
    """Holdout loss against each swept setting; trials without a loss are marked along the top."""
    if not findings.paths or not any(finite_loss(record) is not None for record in findings.records):
        return None
    columns = columns_of_a_grid(len(findings.paths))
    rows = -(-len(findings.paths) // columns)
    with page_style():
        figure = new_figure(min(PAGE_WIDTH, 0.8 + 3.4 * columns), 0.5 + 2.7 * rows)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(findings.paths) :]:
            axes.set_visible(False)
        top = _limit_parameter_losses(grid.flat[0], findings)
        for index, path in enumerate(findings.paths):
            _draw_parameter(grid.flat[index], findings, path, top)
            if index % columns == 0:
                grid.flat[index].set_ylabel("holdout loss")
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5, handletextpad=0.3)
        return to_svg(figure, "parameters")


def columns_of_a_grid(count: int) -> int:
    """Columns of a grid with few empty cells."""
    return count if count <= 4 else 3 if count in (5, 6, 9) else 4


def _limit_parameter_losses(axes: Axes, findings: Findings) -> float:
    """Upper end of the loss axis: an outlier would flatten the completed trials."""
    losses = [loss for record in findings.records if (loss := finite_loss(record)) is not None]
    compared = [finite_loss(record) or 0.0 for record in findings.completed] if len(findings.completed) > 2 else losses
    spread = max(compared) - min(compared) or 0.1
    top = min(max(losses), max(compared) + 0.25 * spread)
    axes.set_ylim(min(losses) - 0.06 * spread, top + 0.16 * (top - min(losses) or 0.1))
    return top


def _draw_parameter(axes: Axes, findings: Findings, path: str, top: float) -> None:
    positions = SettingAxis(axes, findings, path)
    for outcome, filled in ((Outcome.COMPLETED, True), (Outcome.STOPPED, False)):
        trials = [record for record in findings.of(outcome) if finite_loss(record) is not None]
        if not trials:
            continue
        color = COLORS[outcome.lower()]
        axes.scatter(
            [positions.of(record) for record in trials],
            [min(finite_loss(record) or 0.0, top) for record in trials],
            s=26,
            facecolors=color if filled else "none",
            edgecolors=color,
            linewidths=1.1,
            alpha=0.9,
            label=str(outcome).lower() if filled else "stopped (loss at its last rung)",
        )
    if findings.best is not None:
        spot = (positions.of(findings.best), finite_loss(findings.best) or 0.0)
        axes.scatter(
            [spot[0]], [spot[1]], s=95, facecolors="none", edgecolors=COLORS["plot-1"], linewidths=1.6, label="best"
        )
    for outcome in (Outcome.INFEASIBLE, Outcome.DIVERGED):
        spots = [positions.of(record) for record in findings.of(outcome)]
        if not findings.of(outcome):
            continue
        marker = "x" if outcome is Outcome.INFEASIBLE else "^"
        axes.scatter(
            spots,
            [0.95] * len(spots),
            s=24,
            marker=marker,
            color=COLORS[outcome.lower()],
            transform=axes.get_xaxis_transform(),
            label=str(outcome).lower(),
        )


class SettingAxis:
    """The x axis of one setting: logarithmic for a log range, one position per value for a list."""

    def __init__(self, axes: Axes, findings: Findings, path: str) -> None:
        self._findings, self._path = findings, path
        distribution = findings.sweep.search.get(path)
        axes.set_xlabel(short_name(path))
        self._used = [findings.setting(record, path) for record in findings.records]
        self._listed = self._listed_values(distribution)
        if self._listed is not None:
            axes.xaxis.set_major_locator(FixedLocator(list(range(len(self._listed)))))
            axes.set_xticklabels([format_setting(value) for value in self._listed])
            axes.set_xlim(-0.5, len(self._listed) - 0.5)
            return
        assert distribution is not None
        # Probes have settings scaled down to their length, which may lie outside the range, and so may start_with.
        low, high = (end((*distribution.extremes(), *self._used)) for end in (min, max))
        if distribution.kind.startswith("log"):
            axes.set_xscale("log")
            room = (high / low) ** 0.06
            axes.set_xlim(low / room, high * room)
            axes.xaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    def _listed_values(self, distribution: Distribution | None) -> list[Any] | None:
        if distribution is not None and distribution.kind != "choice":
            least = 0.0 if distribution.kind.startswith("log") else -math.inf
            # `auto` for one has no place on an axis of numbers; then every value has its own position.
            if all(isinstance(value, int | float) and value > least for value in self._used):
                return None
        values = [*(distribution.extremes() if distribution is not None else ()), *self._used]
        unique = list({repr(value): value for value in values}.values())
        numbers = [v for v in unique if isinstance(v, int | float) and not isinstance(v, bool)]
        return sorted(numbers) + [value for value in unique if value not in numbers or isinstance(value, bool)]

    def of(self, record: TrialRecord) -> float:
        """Position of a trial on the axis."""
        return self.at(self._findings.setting(record, self._path))

    def at(self, value: Any) -> float:
        """Position of a value on the axis."""
        if self._listed is None:
            return float(value)
        return float([repr(listed) for listed in self._listed].index(repr(value)))


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if math.log10(high / low) > 3 else (1, 3)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    return inside if len(inside) > 1 else [low, high]
