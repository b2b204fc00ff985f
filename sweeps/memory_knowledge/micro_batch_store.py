"""The speed of micro-batches, measured once per shape and kept between sweeps.

For `auto` it sets a trial's micro-batch; if the micro-batch is swept, every value is measured.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.costs.micro_batch_benchmark import fastest, sizes_to_measure
from core.memory.memory_reports import MicroBatchSpeed
from core.settings.run_config import RunConfig
from sweeps.memory_knowledge.measurement_store import KeptMeasurements, OfShape
from sweeps.settings.setting_paths import MICRO_BATCH
from sweeps.settings.sweep_config import SweepConfig


class MeasuredShape(OfShape):
    """The speeds of one shape under one memory limit."""

    asked: tuple[int, ...]
    """Sizes to measure. A size without a speed is slower than the measured ones."""
    speeds: tuple[MicroBatchSpeed, ...]


class MicroBatches:
    """The speeds known to one sweep.

    Args:
        file: `results/memory/<kind of device>-micro-batches.json`.
        shape_of: Shape of a run and its hardware, in words.
        largest: Largest micro-batch of a run that fits; 0 if none fits.
        fits: Whether a run with a fixed micro-batch is predicted to fit.
        swept: Values in the sweep file; empty if the micro-batch is not swept.
    """

    def __init__(
        self,
        file: Path,
        *,
        shape_of: Callable[[RunConfig], str],
        largest: Callable[[RunConfig], int],
        fits: Callable[[RunConfig], bool],
        swept: Sequence[int],
    ) -> None:
        self._shape_of, self._largest, self._fits = shape_of, largest, fits
        self._swept = tuple(swept)
        self._kept = KeptMeasurements(file, MeasuredShape, what="the speed of micro-batches")
        self._known = self._kept.read()

    def to_measure(self, run: RunConfig) -> tuple[int, ...]:
        """Sizes to measure before a run; empty if all relevant speeds are known."""
        known = self._known.get(self._shape_of(run))
        asked = () if known is None else known.asked
        if run.training.micro_batch_size == "auto":
            largest = self._largest(run)
            wanted = sizes_to_measure(largest=largest, sequence_length=run.model.sequence_length) if largest else ()
        elif set(self._swept) <= set(asked):
            return ()
        else:
            # Predictions dominate the cost of a launch, so predict the swept values only, not the largest that fits.
            sizes = [size for size in self._swept if size <= run.training.largest_batch_size]
            wanted = tuple(size for size in sizes if self._fits(run.with_overrides({MICRO_BATCH: size})))
        is_known = set(wanted) <= set(asked) or max(wanted) <= max(asked, default=0)
        return () if is_known else wanted

    def fastest(self, run: RunConfig) -> int | None:
        """The fastest micro-batch for a run with `auto`; None without a measurement."""
        known = self._known.get(self._shape_of(run))
        return None if known is None else fastest(known.speeds, largest=self._largest(run))

    def speed(self, run: RunConfig) -> MicroBatchSpeed | None:
        """The measured speed of a run's own micro-batch; None without a measurement."""
        known = self._known.get(self._shape_of(run))
        size = run.training.micro_batch_size
        return next((one for one in known.speeds if one.rows == size), None) if known else None

    def learn(self, run: RunConfig, asked: Sequence[int], speeds: Sequence[MicroBatchSpeed]) -> None:
        """Store the measured speeds of a run's shape."""
        shape = self._shape_of(run)
        self._known[shape] = MeasuredShape(shape=shape, asked=tuple(asked), speeds=tuple(speeds))
        self._known = self._kept.add(self._known)

    def table(self) -> list[dict[str, Any]]:
        """The entries for summary.json: each shape with the speeds of its micro-batches."""
        return [one.model_dump(mode="json", exclude={"asked"}) for one in self._known.values()]


def without_micro_batch(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the micro-batch, which does not change learning."""
    return {path: value for path, value in settings.items() if path != MICRO_BATCH}


def swept_micro_batches(sweep: SweepConfig) -> tuple[int, ...]:
    """Swept micro-batches of a sweep file, ascending; empty unless they are a choice."""
    swept = sweep.search.get(MICRO_BATCH)
    values = swept.extremes() if swept is not None and swept.kind == "choice" else ()
    return tuple(sorted({value for value in values if isinstance(value, int)}))
