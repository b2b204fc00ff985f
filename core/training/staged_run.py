"""A training in stages: one run after another on rows of different lengths, with weights and optimizer carried over.

Each stage has its own rows, batch size and schedule, as those of system A have; the token axis runs on through all of
them. The checkpoints of the last stage lie in the folder itself, like those of any run, and those of the others below
it, each until the stage after it is done.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from core.distributed.workers import Workers
from core.model_files.checkpoint import newest_checkpoint, read_progress
from core.settings.run_config import RunConfig
from core.training.progress_report import Report
from core.training.run_checks import Beginning
from core.training.run_end import RunEnd
from core.training.training_run import run_training
from data_pipeline.tokens.token_blocks import PreparedCorpus

_DONE_FILE = "stages.json"


@dataclass(frozen=True)
class Stage:
    """What is trained, on which rows."""

    run: RunConfig
    data: PreparedCorpus


@dataclass(frozen=True)
class StageTotals:
    """What the stages before one came to."""

    tokens: int = 0
    step: int = 0
    training_s: float = 0.0


def run_stages(
    stages: Sequence[Stage],
    *,
    workers: Workers,
    folder: Path,
    report: Report,
    evaluate_at_tokens: Sequence[int],
    **settings: Any,
) -> RunEnd:
    """Train one stage after another; called again, go on within the stage that was interrupted.

    Args:
        folder: Of the whole training; rank 0 alone reads and writes it.
        report: Gets what a run reports, with tokens, steps and seconds counted on over the stages, and besides `stage`
            (from 1) and `train/sequence_length`.
        evaluate_at_tokens: On the token axis of the whole training.
        settings: More that `run_training` takes, the same for every stage.

    Raises:
        ValueError, RuntimeError: As `run_training`.
    """
    totals = _read_totals(folder, workers)
    ends: list[RunEnd] = []
    for index in range(len(totals), len(stages)):
        before = totals[-1] if totals else StageTotals()
        is_last = index == len(stages) - 1
        reporter = _StageReport(report, stages[index], index, before)
        end = run_training(
            stages[index].run,
            stages[index].data,
            workers=workers,
            folder=folder if is_last else _folder_of(folder, index),
            report=reporter,
            evaluate_at_tokens=[point - before.tokens for point in evaluate_at_tokens if point > before.tokens],
            begins_with=_left_by_the_one_before(folder, index, workers),
            **settings,
        )
        ends.append(replace(end, tokens=before.tokens + end.tokens, reason=f"stage {index + 1}: {end.reason}"))
        if is_last or end.outcome != "completed":
            break
        totals.append(_total_after(_folder_of(folder, index), before, workers))
        _write_totals(folder, totals, workers)
        if not workers.from_first(int(reporter.goes_on)):
            # Told at the last step of a stage, where a run by itself is simply done.
            words = f"stopped by the caller at the end of stage {index + 1}, at {totals[-1].tokens} tokens"
            ends[-1] = replace(ends[-1], outcome="stopped", reason=words)
            break
    return replace(
        ends[-1],
        peak_memory_bytes=max((end.peak_memory_bytes or 0 for end in ends), default=0) or None,
        oom_events=tuple(event for end in ends for event in end.oom_events),
    )


class _StageReport:
    """What a stage reports, on the axis of the whole training."""

    def __init__(self, report: Report, stage: Stage, index: int, before: StageTotals) -> None:
        self._report, self._before = report, asdict(before)
        self._constant = {"stage": index + 1.0, "train/sequence_length": float(stage.data.train.sequence_length)}
        self.goes_on = True

    def __call__(self, values: dict[str, float]) -> bool:
        counted_on = {name: values[name] + total for name, total in self._before.items()}
        self.goes_on = self._report(values | counted_on | self._constant)
        return self.goes_on


def _folder_of(folder: Path, index: int) -> Path:
    return folder / f"stage-{index + 1}"


def _left_by_the_one_before(folder: Path, index: int, workers: Workers) -> Beginning | None:
    if index == 0 or not workers.is_first:
        return None
    checkpoint = newest_checkpoint(_folder_of(folder, index - 1))
    return None if checkpoint is None else Beginning(checkpoint, is_same_run=False)


def _total_after(stage_folder: Path, before: StageTotals, workers: Workers) -> StageTotals:
    progress = None
    if workers.is_first:
        checkpoint = newest_checkpoint(stage_folder)
        progress = None if checkpoint is None else read_progress(checkpoint)["progress"]
    progress = workers.all_values(progress)[0]
    if not isinstance(progress, dict):
        raise RuntimeError(f"{stage_folder} holds no checkpoint for the next stage to begin with")
    return StageTotals(**{name: progress[name] + total for name, total in asdict(before).items()})


def _read_totals(folder: Path, workers: Workers) -> list[StageTotals]:
    """Of the stages that are done, each with those before it."""
    path = folder / _DONE_FILE
    values = json.loads(path.read_text()) if workers.is_first and path.exists() else []
    read = workers.all_values(values)[0]
    assert isinstance(read, list)
    return [StageTotals(**total) for total in read]


def _write_totals(folder: Path, totals: Sequence[StageTotals], workers: Workers) -> None:
    if not workers.is_first:
        return
    partial = folder / f".{_DONE_FILE}"
    partial.write_text(json.dumps([asdict(total) for total in totals]))
    with partial.open() as file:
        os.fsync(file.fileno())
    partial.replace(folder / _DONE_FILE)
    if len(totals) > 1:
        shutil.rmtree(_folder_of(folder, len(totals) - 2), ignore_errors=True)
