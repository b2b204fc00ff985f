"""The disk that a sweep needs, place by place, before it starts: shown in the plan, and checked against the free room.

Most of it are checkpoints. One holds the weights and both moments of AdamW, and so twelve bytes a trainable parameter
(a third less for matrices that Muon trains); the best weights so far are four more. A running trial has a checkpoint,
the best weights, with a cooldown the checkpoint before it, and writes the next checkpoint beside the last. Checkpoints
of ended trials are removed, except those of the leaders and of the trial that ended last. With trunk-and-branch the
trials that may still be promoted keep theirs, one in `reduction_factor`; with full-length all probes do. The largest
model of the search space counts for every trial. So the figure is that of the fullest moment; a sweep of two tiny
trials came to 0.97 of it, and one whose tokenizer learnt half of the entries that it might learn to 0.71
(tests/sweeps/execution/test_full_disk.py).
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.costs.parameter_counts import parameter_counts
from core.costs.training_flops import rough_training_flops_a_token
from core.settings.run_config import RunConfig
from data_pipeline.files.disk_room import RESERVE_BYTES, free_bytes
from data_pipeline.schema.settings import format_bytes
from data_pipeline.schema.user_errors import InputFault
from sweeps.early_stopping.probe_lengths import num_probes
from sweeps.early_stopping.promotion import FEWEST_FINALISTS
from sweeps.planning.sweep_plan import SweepPlan
from sweeps.search.class_check import class_fault
from sweeps.search.initial_points import middle_run
from sweeps.settings.sweep_config import SweepConfig

_WEIGHT_BYTES, _CHECKPOINT_BYTES = 4, 12
"""Bytes a trainable parameter: fp32 weights; weights and the two moments of AdamW."""
_HEADER_BYTES = 8_000
"""About the headers and small files of a checkpoint: 4.6 kB of a model with one layer."""
_REPORT_BYTES = 4300
"""Bytes of a report of a trial, measured: its lines in log.txt and reports.jsonl, its event, its rows in MLflow."""
_TRIAL_BYTES = 30_000
"""Bytes of a trial beside its reports and checkpoints, measured."""
_PAGES_BYTES = 300_000
"""Bytes of report.html, the tables and the map of a small sweep, measured."""
_EMPTY_STORE_BYTES = 960_000
"""Bytes of an MLflow store on SQLite without runs, measured with MLflow 3.17."""
_TEMPORARY_BYTES = 16 << 20
"""Bytes in the temporary folder: logs of Ray, which rotate; measured 1 to 10 MiB for sweeps of minutes."""
_S_A_TOKEN, _CPU_FLOPS, _GPU_FLOPS = 5e-5, 1e11, 3e13
"""Guesses for the length of a trial, which has a report a second."""
_SIZES = ("model.", "training.lora.")
_SURELY = 0.8
"""Share of the need below which a sweep does not start: above it the estimate may be the one that is wrong."""


@dataclass(frozen=True)
class DiskNeed:
    """The bytes that a sweep needs in one place."""

    place: Path
    parts: dict[str, int]
    """Bytes by purpose."""
    there_bytes: int = 0
    """Bytes of them that an earlier run has written already."""

    @property
    def needed_bytes(self) -> int:
        """Bytes that are still to be written."""
        return max(0, sum(self.parts.values()) - self.there_bytes)

    @property
    def free_bytes(self) -> int | None:
        """Bytes that are free there now; None if unknown."""
        return free_bytes(self.place)

    def __str__(self) -> str:
        """The need with its parts, and the free room."""
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.parts.items() if size)
        there = f"; {format_bytes(self.there_bytes)} are there" if self.there_bytes else ""
        free = self.free_bytes
        known = "" if free is None else f"; {format_bytes(free)} are free"
        return f"about {format_bytes(self.needed_bytes)} in {self.place} ({parts}{there}){known}"


class NoDiskError(InputFault):
    """A sweep would fill a disk."""


def disk_needs(plan: SweepPlan, results_folder: Path, *, there_bytes: int = 0, corpus_bytes: int = 0) -> list[DiskNeed]:
    """What a sweep needs in the results folder, in MLflow's file if that lies elsewhere, and for temporary files.

    Args:
        there_bytes: Bytes that earlier runs of the sweep have in the results folder.
        corpus_bytes: Bytes of the prepared corpus, if it is still to be prepared.
    """
    sweep = plan.sweep
    checkpoint, weights, model = _sizes(sweep, plan.vocabulary_size)
    reports = round(sweep.num_trials * (_TRIAL_BYTES + _num_reports(plan) * _REPORT_BYTES))
    store = results_folder / "mlflow.db" if (elsewhere := _store_file()) is None else elsewhere
    mlflow = {"MLflow": 0 if store.exists() else _EMPTY_STORE_BYTES}
    artifacts = {"the winner": 2 * model, "records and reports": reports + 2 * _PAGES_BYTES}
    here = {"checkpoints": _num_bytes_of_checkpoints(plan, checkpoint, weights), "the corpus": corpus_bytes}
    temporary = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    needs = [
        DiskNeed(results_folder, here | artifacts | ({} if elsewhere else mlflow), there_bytes),
        DiskNeed(temporary, {"logs of Ray": _TEMPORARY_BYTES, "the winner": model}),
    ]
    return [*needs, DiskNeed(store.parent, mlflow | {"runs": reports // 2})] if elsewhere else needs


def check_disk(needs: Sequence[DiskNeed]) -> list[str]:
    """Check that every disk has the room that a sweep needs on it.

    Returns:
        A line for each disk that may become full.

    Raises:
        NoDiskError: One has far too little.
    """
    doubts = []
    disks = {_disk(need.place): [other for other in needs if _disk(other.place) == _disk(need.place)] for need in needs}
    for shared in disks.values():
        free, words = shared[0].free_bytes, "; and ".join(map(str, shared))
        needed = sum(need.needed_bytes for need in shared) + RESERVE_BYTES
        if free is not None and free < _SURELY * needed:
            raise NoDiskError(
                f"there is too little room for this sweep. It needs {words}. Make room there, or name another folder "
                "(--results for results, TMPDIR for temporary files). Then run the same command again."
            )
        if free is not None and free < needed:
            doubts.append(f"{words}. If the disk becomes full, the sweep stops, and the same command resumes it")
    return doubts


def _sizes(sweep: SweepConfig, vocabulary_size: int) -> tuple[int, int, int]:
    """Bytes of a checkpoint, of its weights, and of the whole model, for the largest model of the search space."""

    def counted(run: RunConfig) -> tuple[int, int, int]:
        counts = parameter_counts(run, vocabulary_size)
        return (
            _CHECKPOINT_BYTES * counts.trainable + _HEADER_BYTES,
            _WEIGHT_BYTES * counts.trainable + _HEADER_BYTES,
            _WEIGHT_BYTES * counts.total + _HEADER_BYTES,
        )

    settings: dict[str, Any] = {}
    largest = counted(sweep.run_config())
    for path, distribution in sweep.search.items():
        for value in distribution.extremes() if path.startswith(_SIZES) else ():
            proposed = settings | {path: value}
            if sweep.fault_of(proposed) is not None:
                continue
            run = sweep.run_config(proposed)
            if class_fault(run, vocabulary_size) is None and (size := counted(run)) > largest:
                settings, largest = proposed, size
    return largest


def _num_bytes_of_checkpoints(plan: SweepPlan, checkpoint: int, weights: int) -> int:
    """Bytes of all checkpoints at the fullest moment."""
    sweep = plan.sweep
    has_trunk = sweep.training.schedule == "wsd" and sweep.training.cooldown > 0
    whole = (2 if has_trunk else 1) * checkpoint + weights
    repeats = sweep.num_repeats
    most = sweep.num_trials + repeats
    running = min(plan.lanes.count, most)
    ended = min(1 + (sweep.repeats.leaders + 1 if repeats else 1), most - running)
    waiting = 0
    if plan.promotions is not None:
        kept = max(sweep.num_trials // sweep.early_stopping.reduction_factor, FEWEST_FINALISTS)
        waiting = min(kept, most - running - ended)
    elif sweep.early_stopping.method == "full-length":
        # The shortest length has the most.
        waiting = num_probes(sweep.probe_tokens, plan.rungs, 0, cooldown=sweep.training.cooldown)
    return running * (whole + checkpoint) + ended * whole + waiting * (checkpoint + weights)


def _num_reports(plan: SweepPlan) -> float:
    """About the reports of a trial: one at each evaluation, and one a second."""
    run, tokens = middle_run(plan.sweep), plan.sweep.budget.trial_tokens
    flops = _GPU_FLOPS if plan.lanes.use_gpu else _CPU_FLOPS
    seconds = tokens * (
        _S_A_TOKEN + rough_training_flops_a_token(run, plan.vocabulary_size) / flops / plan.lanes.workers
    )
    return len(plan.evaluate_at_tokens) + len(plan.rungs) + 1 + seconds


def _store_file() -> Path | None:
    """MLflow's SQLite file where the user has named one."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return Path(given.removeprefix("sqlite:///").partition("?")[0]) if given.startswith("sqlite:///") else None


def _disk(place: Path) -> int | None:
    """Number of the disk that a folder lies on, or the one that it will be made in."""
    for folder in (place.absolute(), *place.absolute().parents):
        if folder.exists():
            return folder.stat().st_dev
    return None


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum((Path(parent) / name).lstat().st_size for parent, _, names in os.walk(folder) for name in names)
