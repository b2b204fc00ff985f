"""Settings of a search space that may win: all combinations of a small space, an even sample of a large one."""

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

from scipy.stats import qmc

from sweeps.search_space.distribution import Distribution
from sweeps.settings.sweep_config import SweepConfig

MOST_CANDIDATES = 512
"""Predictions for them take some tens of milliseconds."""
_MORE_WITH_CONSTRAINTS = 4


def candidate_settings(sweep: SweepConfig) -> list[dict[str, Any]]:
    """Distinct settings of the space that meet its constraints; `{}` for an empty space.

    Their order depends on the seed of the searcher.
    """
    found = [settings for settings in _settings_of(sweep) if not sweep.breaks_a_constraint(settings)]
    found = list({repr(settings): settings for settings in map(sweep.settled, found)}.values())
    random.Random(f"candidates {sweep.searcher.seed}").shuffle(found)
    return found


def _settings_of(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """All combinations of a small space; of a large one as many as are predicted at a time, or with constraints more,
    because some of them are left out."""
    paths = list(sweep.search)
    counts = [distribution.count(sweep.grid_points) for distribution in sweep.search.values()]
    if math.prod(counts) <= MOST_CANDIDATES:
        points = sweep.grid_points or MOST_CANDIDATES
        axes = [_all_values(distribution, points) for distribution in sweep.search.values()]
        yield from (dict(zip(paths, values, strict=True)) for values in itertools.product(*axes))
        return
    num_draws = MOST_CANDIDATES * (_MORE_WITH_CONSTRAINTS if sweep.constraint else 1)
    for row in qmc.Sobol(len(paths), seed=sweep.searcher.seed).random(num_draws).tolist():
        yield {
            path: _value_at(sweep.search[path], share, sweep.grid_points)
            for path, share in zip(paths, row, strict=True)
        }


def _all_values(distribution: Distribution, points: int) -> tuple[Any, ...]:
    if distribution.kind == "choice" or "int" not in distribution.kind:
        return distribution.grid(points)
    low, high = distribution.extremes()
    return tuple(range(low, high + 1)) if high - low < points else distribution.grid(points)


def _value_at(distribution: Distribution, share: float, grid_points: int | None) -> Any:
    """The value at a share of the range, on its own scale; of a list or grid the value whose part of it that is."""
    if distribution.kind == "choice" or grid_points is not None:
        values = distribution.grid(grid_points or 1)
        return values[min(int(share * len(values)), len(values) - 1)]
    low, high = distribution.extremes()
    if distribution.kind.startswith("log"):
        value = math.exp(math.log(low) + share * math.log(high / low))
    else:
        value = low + share * (high - low)
    return min(max(round(value), low), high) if "int" in distribution.kind else min(max(value, low), high)
