"""Figure of the expected loss against each setting, averaged over the others, with its uncertainty."""

from typing import Any

import numpy as np

from sweeps.analysis.comparable_losses import EqualProgress
from sweeps.analysis.expected_gain import learning_space
from sweeps.analysis.loss_surface import LossSurface
from sweeps.analysis.sweep_findings import Findings
from sweeps.figures.loss_plots import SettingAxis, columns_of_a_grid
from sweeps.figures.plot_style import COLORS, PAGE_WIDTH, new_figure, page_style, to_svg


def setting_curves(findings: Findings, surface: LossSurface, found: EqualProgress) -> str:
    """A figure: for each setting the expected loss with a band of one standard deviation, and the trials."""
    space = learning_space(findings.sweep)
    columns = columns_of_a_grid(len(space))
    rows = -(-len(space) // columns)
    with page_style():
        figure = new_figure(min(PAGE_WIDTH, 0.8 + 3.4 * columns), 0.4 + 2.6 * rows)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(space) :]:
            axes.set_visible(False)
        for index, path in enumerate(space):
            axes = grid.flat[index]
            axis = SettingAxis(axes, findings, path)
            curve = surface.curve(path)
            x_values = np.array([axis.at(value) for value in curve.values])
            order = np.argsort(x_values)
            x, mean, std = x_values[order], curve.mean[order], curve.std[order]
            if findings.sweep.search[path].kind == "choice":
                axes.errorbar(x, mean, std, fmt="o", color=COLORS["plot-0"], capsize=4, markersize=4)
            else:
                axes.plot(x, mean, color=COLORS["plot-0"])
                axes.fill_between(x, mean - std, mean + std, color=COLORS["plot-0"], alpha=0.2, linewidth=0)
            axes.scatter(
                [axis.of(record) for record in found.records],
                found.losses,
                s=14,
                color=COLORS["muted"],
                alpha=0.6,
                linewidths=0,
                zorder=1,
            )
            if index % columns == 0:
                axes.set_ylabel("holdout loss")
        _limit(grid.flat[0], found)
        return to_svg(figure, "setting-curves")


def _limit(axes: Any, found: EqualProgress) -> None:
    # An outlier would flatten the others: the best three quarters of the trials fill the picture.
    ordered = sorted(found.losses)
    low, middle = ordered[0], ordered[-(-3 * len(ordered) // 4) - 1]
    room = 0.25 * (middle - low) or 0.1
    axes.set_ylim(low - room, middle + 2 * room)
