"""First points from published results, so that a search does not begin at random.

* Learning rate: the middle of its range at the middle batch size, scaled by the square root of the batch size. Malladi
  et al., arXiv:2205.10287, derive the square root for Adam; arXiv:2405.14578 confirms it below the critical batch size.
* Masking rate: 30 %. Wettig et al., arXiv:2202.08005, train better models with rates well above 15 %.
* beta2: a constant half-life in tokens. Marek et al., arXiv:2507.07101.
* Batch size: the smallest first. At equal tokens it takes the most steps, and below the critical batch size it is no
  worse (Marek et al. again).
* Other settings: the value of the file if it lies in the space, else the middle.

A point sets swept settings only, inside their space.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from core.settings.run_config import RunConfig
from sweeps.search_space.distribution import Distribution
from sweeps.settings.setting_paths import BATCH, MICRO_BATCH, half_life_tokens
from sweeps.settings.sweep_config import SweepConfig

_MASKING_RATE = 0.30
_MOST_POINTS = 3
_SHARE_OF_TRIALS = 4
"""At most one trial in this many is an informed point; the search proposes the others."""


@dataclass(frozen=True)
class InformedPoint:
    """Settings to try first, with their reasons."""

    settings: dict[str, Any]
    reasons: tuple[str, ...]
    """Sentences with sources."""


def informed_points(sweep: SweepConfig) -> list[InformedPoint]:
    """First points of a sweep, the smallest batch size first.

    None for a grid, which tries all points anyway, and for the method full-length, whose probes are spread evenly.
    """
    if (
        sweep.early_stopping.method == "full-length"
        or sweep.searcher.start == "none"
        or sweep.searcher.method == "grid"
        or not sweep.search
    ):
        return []
    most = min(_MOST_POINTS, max(1, sweep.budget.trials // _SHARE_OF_TRIALS))
    points: list[InformedPoint] = []
    for batch in _batch_sizes(sweep):
        settings, reasons = _settings_at(sweep, batch)
        known = [point.settings for point in points] + [dict(listed) for listed in sweep.start_with]
        if settings not in known and _is_possible(sweep, settings):
            points.append(InformedPoint(settings, reasons))
    return sorted(points[:most], key=lambda point: point.settings.get(BATCH, 0))


def middle_run(sweep: SweepConfig) -> RunConfig:
    """A run with settings in the middle of the space: a trial of typical size.

    Values of the file take precedence if they lie in the space. If the middle is no valid run, the file's run
    is returned.
    """
    settings, _ = _settings_at(sweep, middle_batch_size(sweep))
    return sweep.run_config(settings if _is_possible(sweep, settings) else {})


def with_smaller_micro_batch(sweep: SweepConfig, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The point with the next smaller micro-batch of the space, which learns the same; None if there is none."""
    distribution = sweep.search.get(MICRO_BATCH)
    if distribution is None or distribution.kind != "choice":
        return None
    smaller = [v for v in distribution.extremes() if isinstance(v, int) and v < settings[MICRO_BATCH]]
    return settings | {MICRO_BATCH: max(smaller)} if smaller else None


def middle_batch_size(sweep: SweepConfig) -> int:
    """The reference batch size: the middle of the swept values, else that of the file."""
    return _batch_sizes(sweep)[0]


def _batch_sizes(sweep: SweepConfig) -> list[int]:
    """The middle, the smallest, the largest: their order of priority among the first points."""
    distribution = sweep.search.get(BATCH)
    if distribution is None:
        return [sweep.training.batch_size]
    sizes = sorted({int(size) for size in distribution.grid(3)})
    return list(dict.fromkeys((sizes[(len(sizes) - 1) // 2], sizes[0], sizes[-1])))


def _settings_at(sweep: SweepConfig, batch: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    ratio = batch / middle_batch_size(sweep)
    settings: dict[str, Any] = {}
    reasons: list[str] = []
    for path, distribution in sweep.search.items():
        value, reason = _value(sweep, path, distribution, batch=batch, ratio=ratio)
        settings[path] = value
        reasons += [reason] if reason else []
    return sweep.settled(settings), tuple(reasons)


def _value(sweep: SweepConfig, path: str, distribution: Distribution, *, batch: int, ratio: float) -> tuple[Any, str]:
    match path:
        case "training.batch_size":
            return batch, ""
        case "training.learning_rate":
            wanted = _middle(distribution) * math.sqrt(ratio)
            scaled = ", times the square root of the batch size (arXiv:2205.10287)" if BATCH in sweep.search else ""
            return _nearest(distribution, wanted), f"learning rate: the middle of its range{scaled}"
        case "objective.masked_lm.masking_rate":
            return _nearest(distribution, _MASKING_RATE), "masking rate: 30 % (arXiv:2202.08005)"
        case "training.beta2":
            known = sweep.training.beta2 if distribution.holds(sweep.training.beta2) else None
            beta2 = _middle(distribution) if known is None else known
            tokens = half_life_tokens(
                beta2, batch_size=middle_batch_size(sweep), sequence_length=sweep.model.sequence_length
            )
            return (
                _nearest(distribution, beta2**ratio),
                f"beta2: a half-life of {tokens:,.0f} tokens at every batch size (arXiv:2507.07101)",
            )
        case "training.micro_batch_size":
            sizes = [v for v in distribution.grid(3) if isinstance(v, int) and v <= batch]
            return max(sizes, default=min(distribution.grid(3), key=str)), ""
        case _:
            said = sweep.value_at(path)
            return (said if distribution.holds(said) else _middle(distribution)), ""


def _middle(distribution: Distribution) -> Any:
    """The middle of a range on its own scale; of a list the middle value, after sorting if all are numbers."""
    values = distribution.grid(1)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        values = tuple(sorted(values))
    return values[(len(values) - 1) // 2]


def _nearest(distribution: Distribution, wanted: float) -> Any:
    """The nearest value of the space, by ratio."""
    values = list(_numbers(distribution))
    if distribution.kind == "choice":
        return min(values, key=lambda value: abs(math.log(max(value, 1e-12) / wanted)))
    value = min(max(wanted, values[0]), values[-1])
    return round(value) if "int" in distribution.kind else value


def _numbers(distribution: Distribution) -> Iterator[float]:
    for value in distribution.extremes():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield value


def _is_possible(sweep: SweepConfig, settings: dict[str, Any]) -> bool:
    try:
        sweep.run_config(settings)
    except ValidationError:
        return False
    return sweep.fault_of(settings) is None
