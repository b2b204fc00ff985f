"""Training speed of all lanes of a sweep together: from earlier trials of the same shape, or measured in some seconds.

A measured speed is kept in `results/memory/`, so the plan and the sweep after it measure once.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from core.costs.lane_benchmark import Way, measure_side_by_side
from core.settings.run_config import RunConfig
from data_pipeline.schema.user_errors import InputFault
from sweeps.lanes.lane_planning import LanePlan
from sweeps.memory_knowledge.measurement_store import KeptMeasurements, OfShape
from sweeps.memory_knowledge.memory_observations import file_of_device
from sweeps.planning.auto_lanes import rows_of_measurement, speed_shape
from sweeps.records.results_folder import ended_sweeps
from sweeps.records.trial_records import TrialStore
from sweeps.search.initial_points import middle_run
from sweeps.settings.sweep_config import SweepConfig
from sweeps.settings.sweep_file import load_sweep_file

_TIMEOUT_S = 90.0
"""Time limit of the measurement."""


@dataclass(frozen=True)
class Speed:
    """Training speed of all lanes together."""

    tokens_per_s: float
    source: str
    """Where the figure is from, as a phrase."""


class KeptSpeed(OfShape):
    """Measured speed of one division of a machine."""

    tokens_per_s: float


def known_speed(sweep: SweepConfig, lanes: LanePlan, *, vocabulary_size: int, results_folder: Path) -> Speed | None:
    """The speed by trials of an earlier sweep of this name and model, or by an earlier measurement; else None."""
    for folder, _ in ended_sweeps(results_folder, sweep.name):
        try:
            earlier = load_sweep_file(folder / "sweep.yaml")
            records = TrialStore(folder / "trials").load_all()
        except InputFault:
            continue  # Damaged, or of another version: a measurement gives the speed as well.
        if (earlier.model, earlier.resources) != (sweep.model, sweep.resources):
            continue
        if rates := [record.tokens_per_s for record in records if record.tokens_per_s]:
            return Speed(median(rates) * lanes.count, f"as trials of {folder.name} trained")
    found = _kept(results_folder).read().get(_shape(middle_run(sweep), lanes, vocabulary_size))
    return None if found is None else Speed(found.tokens_per_s, "measured")


def measured_speed(sweep: SweepConfig, lanes: LanePlan, *, vocabulary_size: int, results_folder: Path) -> Speed | None:
    """The speed by a measurement of some seconds, which is kept; None if the machine is too busy for it."""
    run = middle_run(sweep)
    kept, shape = _kept(results_folder), _shape(run, lanes, vocabulary_size)
    found = kept.read().get(shape)
    if found is None:
        (pace,) = measure_side_by_side(
            run,
            [Way(lanes.count * lanes.workers, lanes.threads_per_worker)],
            vocabulary_size=vocabulary_size,
            rows=rows_of_measurement(run, num_workers=lanes.workers),
            device="cuda:0" if lanes.use_gpu else "cpu",
            share_device=lanes.gpus_per_worker < 1,
            timeout_s=_TIMEOUT_S,
        )
        if pace.tokens_per_s is None:
            return None
        found = KeptSpeed(shape=shape, tokens_per_s=pace.tokens_per_s)
        if pace.was_quiet:
            kept.add({shape: found})
    return Speed(found.tokens_per_s, "measured")


def _kept(results_folder: Path) -> KeptMeasurements[KeptSpeed]:
    file = file_of_device(results_folder, "speeds")
    return KeptMeasurements(file, KeptSpeed, what="how fast trials train")


def _shape(run: RunConfig, lanes: LanePlan, vocabulary_size: int) -> str:
    division = f"{lanes.count} lanes of {lanes.workers} workers with {lanes.threads_per_worker} threads"
    return f"{speed_shape(run, vocabulary_size)}, {torch.cuda.device_count()} GPUs, {division}"
