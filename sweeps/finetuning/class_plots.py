"""Figures of a fine-tuning as SVG elements: the confusion matrix, and the holdout over the epochs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from data_pipeline.schema.terminal_text import visible
from sweeps.figures.plot_style import COLORS, PAGE_WIDTH, SERIES, new_figure, page_style, to_svg
from sweeps.finetuning.classifier_results import ClassifierRun

_MOST_CLASSES = 30
"""Maximum number of classes in the matrix; smaller classes share one row and one column."""
_MOST_NUMBERS = 22
"""Maximum number of classes for which cells show their count."""
_CELL_INCHES = 0.36
_LONGEST_NAME = 24


def confusion_picture(confusions: NDArray[np.int64], names: Sequence[str]) -> str:
    """Confusion matrix: rows are true classes, columns predicted ones; colours are shares of the true class.

    The most frequent classes come first. Beyond thirty, all other classes share one row and one column.
    """
    matrix, labels = _commonest_first(confusions, names)
    count = len(labels)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    with page_style():
        size = min(PAGE_WIDTH - 2.0, max(3.0, _CELL_INCHES * count))
        figure = new_figure(size + 2.0, size + 1.2)
        axes = figure.subplots()
        # Opacity encodes the share, so that one figure suits light and dark pages.
        for row, column in zip(*np.nonzero(matrix), strict=True):
            is_right = row == column
            axes.fill(
                [column - 0.48, column + 0.48, column + 0.48, column - 0.48],
                [row - 0.48, row - 0.48, row + 0.48, row + 0.48],
                color=SERIES[0] if is_right else SERIES[1],
                alpha=0.12 + 0.78 * float(shares[row, column]),
                linewidth=0,
            )
            if count <= _MOST_NUMBERS:
                text = str(int(matrix[row, column]))
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=COLORS["ink"])
        axes.set_xticks(range(count), labels, rotation=90)
        axes.set_yticks(range(count), labels)
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), xlabel="predicted", ylabel="true", aspect="equal")
        axes.grid(visible=False)
        return to_svg(figure, "confusion-matrix")


def curves_picture(runs: Sequence[ClassifierRun]) -> str | None:
    """Loss and macro F1 on the holdout over the epochs, one line per run; None before the first evaluation."""
    drawn = [run for run in runs if run.evaluations]
    if not drawn:
        return None
    with page_style():
        figure = new_figure(PAGE_WIDTH, 3.5)
        loss_axes, f1_axes = figure.subplots(1, 2)
        for number, run in enumerate(drawn):
            style = {"color": SERIES[number % len(SERIES)], "marker": "o", "markersize": 3}
            style |= {"linestyle": "-" if run.start == "pretrained" else "--"}
            epochs = [one["epoch"] for one in run.evaluations]
            losses = [one["holdout/loss_nats_per_token"] for one in run.evaluations]
            loss_axes.plot(epochs, losses, label=_line_name(run), **style)
            f1_axes.plot(epochs, [one["holdout/macro_f1"] for one in run.evaluations], **style)
        loss_axes.set(title="holdout loss, nats per row", xlabel="epoch")
        f1_axes.set(title="holdout macro F1", xlabel="epoch")
        for axes in (loss_axes, f1_axes):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=3)
        return to_svg(figure, "epochs")


def _line_name(run: ClassifierRun) -> str:
    return f"{run.start}, {run.learning_rate:g}, batch {run.batch_size}, {run.epochs:g} epochs, seed {run.seed}"


def _commonest_first(confusions: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    order = np.argsort(-confusions.sum(axis=1), kind="stable")
    shown = order if len(order) <= _MOST_CLASSES else order[: _MOST_CLASSES - 1]
    rest = order[len(shown) :]
    groups = [np.array([number]) for number in shown] + ([rest] if len(rest) else [])
    matrix = np.array([[confusions[np.ix_(row, column)].sum() for column in groups] for row in groups], np.int64)
    labels = [_short(names[number]) for number in shown] + ([f"{len(rest)} others"] if len(rest) else [])
    return matrix, labels


def _short(name: str) -> str:
    name = visible(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
