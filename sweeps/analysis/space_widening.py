"""An optimum on the edge of the search space: found after the search; the space can then be widened."""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from data_pipeline.schema.settings import Settings
from sweeps.analysis.expected_gain import learning_space
from sweeps.analysis.noise_floor import seed_groups
from sweeps.records.trial_records import TrialRecord
from sweeps.search_space.distribution import Distribution, format_setting
from sweeps.settings.sweep_config import SweepConfig

MOST_WIDENINGS = 2
"""Limit of widenings per sweep."""
_SHARE_MORE = 4
"""Each widening adds the budget's trials divided by this number."""
_MIN_FOR_EDGE = 4
"""Completed trials below which the position of the best in its range is chance."""
_EDGE = 0.08
"""Share of a range, on its own scale, that counts as its edge."""
_MIN_LISTED = 3
"""Values below which a choice has no middle."""


class Widening(Settings):
    """One widening of the search space."""

    search: dict[str, Distribution]
    """Whole new distribution of each widened setting."""
    more_trials: int
    reason: str


def best_on_edges(sweep: SweepConfig, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """Settings whose best value lies on the edge of the space, each with a value beyond the edge.

    Covers settings that change learning and have a valid value beyond. Empty below four completed trials.
    """
    groups = seed_groups(records)
    if sum(group.count for group in groups) < _MIN_FOR_EDGE:
        return {}
    best = groups[0].records[0].settings
    found = {}
    for path, distribution in learning_space(sweep).items():
        beyond = beyond_the_edge(distribution, best[path]) if path in best else None
        if beyond is not None and _is_possible(sweep, path, beyond):
            found[path] = beyond
    return found


def widening(sweep: SweepConfig, records: Sequence[TrialRecord]) -> Widening | None:
    """The next widening; None if the best trial lies on no edge."""
    found = best_on_edges(sweep, records)
    if not found:
        return None
    search = {path: widened(sweep.search[path], beyond) for path, beyond in found.items()}
    reason = "; ".join(
        f"the best trial lies on the edge of {path} ({sweep.search[path]}), widened to {format_setting(beyond)}"
        for path, beyond in found.items()
    )
    return Widening(search=search, more_trials=max(3, sweep.budget.trials // _SHARE_MORE), reason=reason)


def widened_sweep(sweep: SweepConfig, widenings: Sequence[Widening]) -> SweepConfig:
    """The sweep with its widened search space."""
    search = dict(sweep.search)
    for one in widenings:
        search |= one.search
    return sweep.model_copy(update={"search": search})


def widened(distribution: Distribution, beyond: Any) -> Distribution:
    """The distribution extended to a value beyond one of its ends."""
    values = distribution.extremes()
    if distribution.kind == "choice":
        return Distribution(choice=(*values, beyond), when=distribution.when)
    ends = (min(values[0], beyond), max(values[1], beyond))
    return Distribution.model_validate({distribution.kind: ends, "when": distribution.when})


def beyond_the_edge(distribution: Distribution, value: Any) -> Any:
    """A value past the edge that `value` lies on; None if it lies on no edge."""
    ends = distribution.extremes()
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (*ends, value)):
        return None
    low, high = min(ends), max(ends)
    if len(ends) < 2 or not low <= value <= high:
        return None
    if distribution.kind == "choice":
        if low < value < high or len(ends) < _MIN_LISTED:
            return None
        ordered = sorted(ends)
        neighbour, edge = (ordered[1], low) if value == low else (ordered[-2], high)
        # A list of numbers continues its ratio: 256 follows 64, 128, and 0.4 follows 0.1, 0.2.
        beyond = edge * edge / neighbour if neighbour > 0 and edge > 0 else 2 * edge - neighbour
    elif distribution.kind.startswith("log"):
        position = math.log(value / low) / math.log(high / low)
        beyond = high * 3 if position > 1 - _EDGE else low / 3 if position < _EDGE else None
    else:
        position, margin = (value - low) / (high - low), (high - low) / 2
        beyond = high + margin if position > 1 - _EDGE else low - margin if position < _EDGE else None
    if beyond is None:
        return None
    whole = all(isinstance(end, int) for end in ends)
    return round(beyond) if whole else beyond


def _is_possible(sweep: SweepConfig, path: str, value: Any) -> bool:
    try:
        sweep.run_config({path: value})
    except (ValidationError, ValueError):
        return False
    return True
