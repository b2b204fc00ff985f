"""Two sweeps side by side: the results of each, the settings that differ, and whether their losses compare."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_pipeline.schema.dotted_paths import flattened
from data_pipeline.schema.settings import clock
from sweeps.records.results_folder import read_summary
from sweeps.records.trial_records import LOSS_COLUMN
from sweeps.search_space.distribution import format_setting
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file

_BITS = "holdout_bits_per_byte"
_RESULT_ONLY = frozenset({"name", "purpose"})
"""Settings that do not change training."""


@dataclass(frozen=True)
class SweepComparison:
    """The comparison of two results folders."""

    names: tuple[str, str]
    results: dict[str, tuple[Any, Any]]
    """Results by name: best loss, trial, tokens, seconds, outcomes."""
    settings: dict[str, tuple[Any, Any]]
    """Dotted path to the two values of each setting that differs; None where one file lacks it."""
    not_comparable: tuple[str, ...]
    """Reasons not to compare the losses; empty where they compare."""
    loss_difference_nats: float | None
    """Best loss of the second minus that of the first."""


def compare_sweeps(first: Path, second: Path) -> SweepComparison:
    """The comparison of the sweeps in two results folders.

    Raises:
        ResultsError: A folder is no results folder of a sweep, or its summary.json is damaged.
    """
    (one, one_sweep), (two, two_sweep) = (_read(folder) for folder in (first, second))
    settings = (_flat(one_sweep), _flat(two_sweep))
    paths = sorted(settings[0].keys() | settings[1].keys())
    differing = {
        path: (settings[0].get(path), settings[1].get(path))
        for path in paths
        if settings[0].get(path) != settings[1].get(path)
    }
    results = (dict(_results(one)), dict(_results(two)))
    losses = [summary["best"] and summary["best"].get(LOSS_COLUMN) for summary in (one, two)]
    reasons = tuple(_why_not_comparable(one, two, one_sweep, two_sweep))
    return SweepComparison(
        names=(first.resolve().name, second.resolve().name),
        results={name: (results[0].get(name), results[1].get(name)) for name in {**results[0], **results[1]}},
        settings=differing,
        not_comparable=reasons,
        loss_difference_nats=None if reasons or None in losses else losses[1] - losses[0],
    )


def print_comparison(found: SweepComparison, console: Console) -> None:
    """Tables of results and of differing settings, and the difference in words."""
    for title, rows in (("results", found.results), ("settings that differ", found.settings)):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(title)
        for name in found.names:
            table.add_column(name, justify="right", overflow="fold")
        for name, values in rows.items():
            table.add_row(name, *(_shown(name, value) for value in values))
        console.print(table)
        console.print()
    if found.not_comparable:
        for reason in found.not_comparable:
            console.print(f"The losses do not compare: {reason}.", style="yellow", highlight=False, soft_wrap=True)
    elif found.loss_difference_nats is not None:
        better = found.names[found.loss_difference_nats < 0]
        words = f"{better} is lower by {abs(found.loss_difference_nats):.4f} nats per token"
        console.print(words if found.loss_difference_nats else "Both sweeps have the same loss.", highlight=False)


def _read(folder: Path) -> tuple[dict[str, Any], SweepConfig]:
    needs = ("best", "status", "outcomes", "training_s_by_outcome", "wall_s", "data")
    return read_summary(folder, needs=needs), load_sweep_file(folder / "sweep.yaml")


def _results(summary: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    best = summary["best"] or {}
    yield "status", summary["status"]
    yield "best trial", best.get("trial")
    yield LOSS_COLUMN, best.get(LOSS_COLUMN)
    if _BITS in best:
        yield _BITS, best[_BITS]
    for name in ("tokens", "tokens_per_s", "measured_peak_memory_bytes"):
        yield f"best trial's {name}", best.get(name)
    yield "trials", sum(summary["outcomes"].values())
    yield from ((f"trials {outcome}", count) for outcome, count in summary["outcomes"].items())
    yield "training_s", round(sum(summary["training_s_by_outcome"].values()), 3)
    yield "wall_s", summary["wall_s"]


def _flat(sweep: SweepConfig) -> dict[str, Any]:
    flat = dict(flattened(sweep.model_dump(mode="json", exclude={"search", *_RESULT_ONLY})))
    return flat | {f"search {path}": str(swept) for path, swept in sweep.search.items()}


def _why_not_comparable(
    one: dict[str, Any], two: dict[str, Any], one_sweep: SweepConfig, two_sweep: SweepConfig
) -> Iterator[str]:
    if one["best"] is None or two["best"] is None:
        yield "one of them has no completed trial"
    if one["data"].get("fingerprint") != two["data"].get("fingerprint"):
        yield (
            "the prepared corpora differ (corpus, tokenizer or rows), so the holdouts have different tokens; bits per "
            "byte compare where the holdouts have the same texts"
        )
    if (one_sweep.objective.masked_lm is None) != (two_sweep.objective.masked_lm is None):
        yield "one is a masked LM, the other a causal LM"


def _shown(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "wall_s" or name == "training_s":
        return clock(value)
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) and abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else format_setting(value)
