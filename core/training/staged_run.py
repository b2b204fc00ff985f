"""Training in stages: consecutive runs on rows of different lengths that keep weights and optimizer state.

Each stage has its own rows, batch size and schedule, as in system A; tokens are counted over all stages. The
checkpoints of the last stage are in the folder itself, like those of a single run; those of earlier stages are in
subfolders until the following stage is done.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from core.distributed.workers import Workers
from core.model_files.checkpoint import newest_checkpoint, read_progress
from core.training.progress_report import Report
from core.training.run_checks import Beginning
from core.training.run_end import RunEnd
from core.training.training_run import run_training
from core.training.training_stage import Stage
from data_pipeline.files.whole_files import write_whole

_DONE_FILE = "stages.json"


@dataclass(frozen=True)
class StageTotals:
    """Sums over the stages before one."""

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
    """Train one stage after another; a repeated call resumes in the interrupted stage.

    Args:
        folder: Folder of the whole training; only rank 0 reads and writes it.
        report: Receives the reports of the runs, with tokens, steps and seconds summed over the stages, plus `stage`
            (from 1) and `train/sequence_length`.
        evaluate_at_tokens: Tokens of the whole training at which the holdout is evaluated.
        settings: Further arguments of `run_training`, the same for every stage.

    Returns:
        The end of the last stage that ran, with tokens, peak memory and out-of-memory events of the whole training.

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
        if not workers.from_first(int(reporter.continues)):
            # The caller stopped it at the last step of the stage, where the run itself counts as completed.
            words = f"stopped by the caller at the end of stage {index + 1}, at {totals[-1].tokens} tokens"
            ends[-1] = replace(ends[-1], outcome="stopped", reason=words)
            break
    return replace(
        ends[-1],
        peak_memory_bytes=max((end.peak_memory_bytes or 0 for end in ends), default=0) or None,
        oom_events=tuple(event for end in ends for event in end.oom_events),
    )


class _StageReport:
    """Reports of a stage, with counters of the whole training."""

    def __init__(self, report: Report, stage: Stage, index: int, before: StageTotals) -> None:
        self._report, self._before = report, asdict(before)
        self._constant = {"stage": index + 1.0, "train/sequence_length": float(stage.data.train.sequence_length)}
        self.continues = True

    def __call__(self, values: dict[str, float]) -> bool:
        totals = {name: values[name] + total for name, total in self._before.items()}
        self.continues = self._report(values | totals | self._constant)
        return self.continues


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
        raise RuntimeError(f"{stage_folder} holds no checkpoint that the next stage could begin with; train it again")
    return StageTotals(**{name: progress[name] + total for name, total in asdict(before).items()})


def _read_totals(folder: Path, workers: Workers) -> list[StageTotals]:
    """Totals after each completed stage, earlier stages included."""
    path = folder / _DONE_FILE
    values = json.loads(path.read_text()) if workers.is_first and path.exists() else []
    read = workers.all_values(values)[0]
    assert isinstance(read, list)
    return [StageTotals(**total) for total in read]


def _write_totals(folder: Path, totals: Sequence[StageTotals], workers: Workers) -> None:
    if not workers.is_first:
        return
    write_whole(folder / _DONE_FILE, json.dumps([asdict(total) for total in totals]).encode())
    if len(totals) > 1:
        shutil.rmtree(_folder_of(folder, len(totals) - 2), ignore_errors=True)
