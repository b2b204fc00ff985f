"""The memory frontier in a search space: the settings that need least memory, and the frontier along one setting.

A prediction of a new shape takes up to a second, so both use few of them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from core.settings.run_config import RunConfig
from core.user_code.code_places import UserCodeError
from data_pipeline.schema.settings import Settings
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier, micro_batch_of
from sweeps.memory_knowledge.memory_observations import MemoryObservation
from sweeps.search_space.distribution import Distribution
from sweeps.search_space.valid_combinations import valid_near
from sweeps.settings.setting_paths import MICRO_BATCH
from sweeps.settings.sweep_config import SweepConfig

_BATCH = "training.batch_size"
_MOST_VALUES = 4
"""Values of the axis, and micro-batches for each, at which memory is predicted for the frontier."""
_MOVES = 0.01
"""Least relative change of memory for a setting to become the axis."""


class FrontierPoint(Settings):
    """The frontier at one value of the axis."""

    value: bool | int | float | str
    micro_batch_size: float
    """Micro-batch that is predicted to fill the capacity exactly; 0 if no row fits."""


class FrontierMap(Settings):
    """The memory frontier at the end of a sweep."""

    device: str
    source: str
    """Folder of the sweep, as observations name it."""
    limit_bytes: int
    capacity_bytes: int
    """Largest predicted size that would be launched, for an unknown shape."""
    learnt: str
    """The trial that moved the capacity away from the limit, in words."""
    axis: str | None
    """The swept setting that changes memory most, except micro-batch and batch size; None if none does."""
    others: tuple[str, ...]
    """Other swept settings that change memory."""
    border: tuple[FrontierPoint, ...]
    """Points of the frontier, at the file's values of the others, for steps of several micro-batches.

    The name is that of the file on disk.
    """
    observations: tuple[MemoryObservation, ...]


def map_frontier(sweep: SweepConfig, frontier: MemoryFrontier, *, device: str, with_points: bool = True) -> FrontierMap:
    """The frontier for the report and for the file beside the results.

    Args:
        with_points: False: leave out axis and points, which need predictions.
    """
    moves = _moves(sweep, frontier) if with_points else {}
    # The batch size is the axis only if no other setting changes memory: it is not part of a shape.
    axis = max({path: moves[path] for path in moves if path != _BATCH} or moves, key=lambda p: moves[p], default=None)
    capacity = frontier.capacity()
    return FrontierMap(
        device=device,
        source=frontier.source,
        limit_bytes=frontier.limit_bytes,
        capacity_bytes=capacity.num_bytes,
        learnt=capacity.learnt,
        axis=axis,
        others=tuple(path for path in moves if path != axis),
        border=tuple(_points(sweep, frontier, axis, capacity.num_bytes)) if with_points else (),
        observations=frontier.observations,
    )


def least_demanding(
    sweep: SweepConfig, num_bytes: Callable[[dict[str, Any]], int | None], *, enough: int
) -> tuple[dict[str, Any], int]:
    """Settings that need least memory, and their bytes, by coordinate descent.

    Args:
        num_bytes: Memory of settings; None for an invalid combination.
        enough: Bytes at which the descent stops.
    """
    corner = {path: min(_values(distribution), key=_size) for path, distribution in sweep.search.items()}
    settings = valid_near(
        corner, sweep.search, sweep.fault_of, size=_size, linked=sweep.linked, grid_points=sweep.grid_points
    )
    least = num_bytes(settings)
    for _ in range(2):
        for path, distribution in sweep.search.items():
            for value in _values(distribution):
                if least is not None and least <= enough:
                    return settings, least
                needed = num_bytes(settings | {path: value})
                if needed is not None and (least is None or needed < least):
                    settings, least = settings | {path: value}, needed
    assert least is not None, "the checks of the file guarantee a valid combination"
    return settings, least


def _values(distribution: Distribution) -> Sequence[Any]:
    return distribution.extremes()


def _size(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _moves(sweep: SweepConfig, frontier: MemoryFrontier) -> dict[str, float]:
    """Swept settings that change memory, except the micro-batch, each with its largest peak over the smallest."""
    moves: dict[str, float] = {}
    for path, distribution in sweep.search.items():
        if path == MICRO_BATCH:
            continue
        peaks = [_peak(sweep, frontier, {path: value}) for value in _spread(_values(distribution))]
        known = [peak for peak in peaks if peak is not None]
        if known and max(known) > (1 + _MOVES) * min(known):
            moves[path] = max(known) / min(known)
    return moves


def _points(
    sweep: SweepConfig, frontier: MemoryFrontier, axis: str | None, capacity_bytes: int
) -> Iterator[FrontierPoint]:
    for value in [""] if axis is None else _sampled(sweep.search[axis]):
        settings = {} if axis is None else {axis: value}
        peaks = {
            size: peak
            for size in _sizes(sweep)
            if (peak := _peak(sweep, frontier, settings | {MICRO_BATCH: size})) is not None
        }
        if len(peaks) > 1:
            size = _where_it_meets(peaks, capacity_bytes)
            # A micro-batch cannot exceed the batch size.
            yield FrontierPoint(value=value, micro_batch_size=min(size, value) if axis == _BATCH else size)


def _where_it_meets(peaks: dict[int, int], capacity_bytes: int) -> float:
    """The size whose peak is the capacity, by linear inter- and extrapolation: peaks are nearly linear in the rows."""
    sizes = sorted(peaks)
    low = max((size for size in sizes[:-1] if peaks[size] <= capacity_bytes), default=sizes[0])
    high = sizes[sizes.index(low) + 1]
    slope = (peaks[high] - peaks[low]) / (high - low)
    return max(0.0, low + (capacity_bytes - peaks[low]) / slope) if slope > 0 else float(sizes[-1])


def _sizes(sweep: SweepConfig) -> list[int]:
    """Micro-batches at which memory is predicted: the swept ones, or those of the file."""
    swept = sweep.search.get(MICRO_BATCH)
    asked = sweep.training.micro_batch_size
    sizes = {size for size in (swept.extremes() if swept else (1, asked)) if isinstance(size, int)}
    sizes = sizes or {1}  # All that is swept may be `auto`.
    return _spread(sorted(sizes if len(sizes) > 1 else {*sizes, 2 * max(sizes)}))


def _sampled(distribution: Distribution) -> list[Any]:
    return _spread(distribution.grid(3))


def _spread(values: Sequence[Any]) -> list[Any]:
    """At most `_MOST_VALUES` of the values, with both ends."""
    if len(values) <= _MOST_VALUES:
        return list(values)
    step = (len(values) - 1) / (_MOST_VALUES - 1)
    return [values[round(step * index)] for index in range(_MOST_VALUES)]


def _peak(sweep: SweepConfig, frontier: MemoryFrontier, settings: dict[str, Any]) -> int | None:
    """Predicted peak for a step of several micro-batches, as in most trials; None for an invalid combination."""
    size = settings.get(MICRO_BATCH, max(_sizes(sweep)))
    batch = {} if _BATCH in settings else {_BATCH: 2 * size * frontier.num_workers}
    try:
        run: RunConfig = sweep.run_config({MICRO_BATCH: size} | batch | settings)
        assert micro_batch_of(run, frontier.num_workers) is not None
        return frontier.predict(run)
    except (ValidationError, UserCodeError):
        return None
