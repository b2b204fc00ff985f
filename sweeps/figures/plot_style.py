"""The style of a report's figures, and their conversion to SVG with the colours of the page."""

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator

from data_pipeline.schema.settings import format_bytes
from data_pipeline.schema.terminal_text import visible

# Matplotlib accepts no CSS variables: these colours are placeholders until the SVG is written.
_VARIABLES = {
    "#000101": ("--ink", "#1f2328"),
    "#000102": ("--muted", "#626a73"),
    "#000103": ("--line", "#dfe2e6"),
    "#000104": ("--faint", "#c3c8cf"),
    "#000105": ("--page", "#fdfdfc"),
    "#000110": ("--plot-0", "#2468ae"),
    "#000111": ("--plot-1", "#c4560e"),
    "#000112": ("--plot-2", "#2a7f4f"),
    "#000113": ("--plot-3", "#8b4fb0"),
    "#000114": ("--plot-4", "#a3821a"),
    "#000115": ("--plot-5", "#b0344a"),
    "#000120": ("--completed", "#2a7f4f"),
    "#000121": ("--stopped", "#3d7593"),
    "#000122": ("--infeasible", "#9a6a00"),
    "#000123": ("--diverged", "#8b4fb0"),
    "#000124": ("--interrupted", "#6b7280"),
    "#000125": ("--failed", "#b3261e"),
    "#000126": ("--running", "#2468ae"),
}
COLORS = {name.removeprefix("--"): placeholder for placeholder, (name, _) in _VARIABLES.items()}
"""Name of a page colour to its placeholder for Matplotlib."""
SERIES = tuple(COLORS[f"plot-{index}"] for index in range(6))

PAGE_WIDTH = 12.0
"""Width of a figure as wide as the page, in inches of 72 points."""

_STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": COLORS["ink"],
    # Names come from users: a name with two dollar signs is no formula.
    "text.parse_math": False,
    "axes.edgecolor": COLORS["faint"],
    "axes.labelcolor": COLORS["muted"],
    "axes.titlecolor": COLORS["ink"],
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLORS["line"],
    "grid.linewidth": 0.7,
    "xtick.color": COLORS["faint"],
    "ytick.color": COLORS["faint"],
    "xtick.labelcolor": COLORS["muted"],
    "ytick.labelcolor": COLORS["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "pretune",
}


@contextmanager
def page_style() -> Iterator[None]:
    """Apply the page style to figures made and written inside. Not thread-safe: Matplotlib's settings are global."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, with automatic layout."""
    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element: the ids of its parts start with `name`, the colours are the page's."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    # XML has no control characters, and a name may have some.
    svg = visible(buffer.getvalue(), keep="\n\t")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    for placeholder, (variable, fallback) in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable}, {fallback})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def standalone(svg: str) -> str:
    """A picture of the page as a separate file, with fixed colours and background."""
    coloured = re.sub(r"var\(--[\w-]+, (#[0-9a-f]+)\)", r"\1", svg)
    _, background = _VARIABLES["#000105"]
    return re.sub(r"(<svg [^>]*>)", rf'\1<rect width="100%" height="100%" fill="{background}"/>', coloured, count=1)


def tokens_axis(axes: Axes) -> None:
    """Make the x axis count training tokens."""
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))


def bytes_axis(axes: Axes, name: Literal["x", "y"], low: float, high: float, *, is_log: bool = False) -> None:
    """Make an axis count bytes up to `high`: from zero in a suitable unit, or from `low` by factors of two."""
    axis: Axis = axes.xaxis if name == "x" else axes.yaxis
    set_limits = axes.set_xlim if name == "x" else axes.set_ylim
    if is_log:
        (axes.set_xscale if name == "x" else axes.set_yscale)("log", base=2)
        set_limits(low / 2, high * 2)
        axis.set_major_locator(LogLocator(base=2, numticks=7))
        axis.set_minor_locator(NullLocator())
    else:
        unit = 1024.0 ** math.floor(math.log(max(high, 1), 1024))
        step = next(s for s in _NICE if high / unit / s <= _MOST_TICKS) * unit
        set_limits(0, high * 1.04)
        axis.set_major_locator(MultipleLocator(step))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value).replace(".00 ", " ")))


_MOST_TICKS = 5
_NICE = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Steps between ticks, in the unit of the axis."""


def short_count(value: float) -> str:
    """`1.5M`, `20k`: a count that fits under a tick."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
