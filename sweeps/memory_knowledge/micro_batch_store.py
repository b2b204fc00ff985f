"""How fast micro-batches are, measured once for each shape and kept from sweep to sweep, as what is known of memory is.

A trial's own micro-batch follows from it where the file says `auto`; where it is swept, every value is measured.
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
    """What was measured of one shape under one memory limit."""

    asked: tuple[int, ...]
    """Sizes that were to be measured; those left out are slower than what was found."""
    speeds: tuple[MicroBatchSpeed, ...]


class MicroBatches:
    """The speeds known to one sweep.

    Args:
        file: Of the kind of device, `results/memory/<kind>-micro-batches.json`.
        shape_of: A run's shape and the machine where it trains, in words.
        largest: The most rows that one worker may hold at once in a run; 0 where none fits.
        fits: Whether a run with a micro-batch of its own is predicted to fit.
        swept: Values that the sweep file lists; empty where the micro-batch is not swept.
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
        """Sizes whose speed is to be measured before a run; empty where all that matters is known."""
        known = self._known.get(self._shape_of(run))
        asked = () if known is None else known.asked
        if run.training.micro_batch_size == "auto":
            largest = self._largest(run)
            wanted = sizes_to_measure(largest=largest, sequence_length=run.model.sequence_length) if largest else ()
        elif set(self._swept) <= set(asked):
            return ()
        else:
            # What fits is predicted, which takes longer than all else of a launch: each value, and not the largest.
            sizes = [size for size in self._swept if size <= run.training.batch_size]
            wanted = tuple(size for size in sizes if self._fits(run.with_overrides({MICRO_BATCH: size})))
        is_known = set(wanted) <= set(asked) or max(wanted) <= max(asked, default=0)
        return () if is_known else wanted

    def fastest(self, run: RunConfig) -> int | None:
        """The micro-batch for a run that leaves it open; None where nothing is known yet."""
        known = self._known.get(self._shape_of(run))
        return None if known is None else fastest(known.speeds, largest=self._largest(run))

    def speed(self, run: RunConfig) -> MicroBatchSpeed | None:
        """What was measured of a run's own micro-batch."""
        known = self._known.get(self._shape_of(run))
        size = run.training.micro_batch_size
        return next((one for one in known.speeds if one.rows == size), None) if known else None

    def learn(self, run: RunConfig, asked: Sequence[int], speeds: Sequence[MicroBatchSpeed]) -> None:
        """Keep what was measured."""
        shape = self._shape_of(run)
        self._known[shape] = MeasuredShape(shape=shape, asked=tuple(asked), speeds=tuple(speeds))
        self._known = self._kept.add(self._known)

    def table(self) -> list[dict[str, Any]]:
        """For summary.json: each shape with what its micro-batches came to."""
        return [one.model_dump(mode="json", exclude={"asked"}) for one in self._known.values()]


def without_micro_batch(settings: dict[str, Any]) -> dict[str, Any]:
    """Swept settings that decide what is learnt."""
    return {path: value for path, value in settings.items() if path != MICRO_BATCH}


def swept_micro_batches(sweep: SweepConfig) -> tuple[int, ...]:
    """Micro-batches that a sweep file lists as values to try."""
    swept = sweep.search.get(MICRO_BATCH)
    values = swept.extremes() if swept is not None and swept.kind == "choice" else ()
    return tuple(sorted({value for value in values if isinstance(value, int)}))
