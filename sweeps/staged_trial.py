"""A trial in stages, and one that goes on from a trunk, as a lane's workers train them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.checkpoint import trunk_checkpoint
from core.progress_report import Report
from core.run_config import RunConfig
from core.run_start import Beginning
from core.staged_run import Stage, run_stages
from core.training_run import RunEnd
from core.workers import Workers
from data_pipeline.token_blocks import PreparedCorpus
from sweeps.mailbox import Assignment


def train_stages(
    assignment: Assignment,
    workers: Workers,
    opened: Callable[[str, Any], PreparedCorpus],
    report: Report,
    is_stopped: Callable[[], bool],
) -> RunEnd:
    """Train a trial's stages, one after another.

    Args:
        opened: The prepared corpus of a folder, by way of a server of copies where there is one.
        is_stopped: As `run_training` takes it.
    """
    stages = [
        Stage(RunConfig.model_validate(stage.run), opened(stage.prepared_folder, stage.corpus_server))
        for stage in assignment.stages
    ]
    return run_stages(
        stages,
        workers=workers,
        folder=Path(assignment.trial_folder),
        report=report,
        evaluate_at_tokens=assignment.evaluate_at_tokens,
        memory_limit_bytes=assignment.memory_limit_bytes,
        memory_limit_by=assignment.memory_limit_by,
        checkpoint_every_s=assignment.checkpoint_every_s,
        is_stopped=is_stopped,
    )


def trunk_of(assignment: Assignment) -> Beginning | None:
    """What a trial goes on from, if it does."""
    trunk = None if assignment.trunk_folder is None else trunk_checkpoint(Path(assignment.trunk_folder))
    return None if trunk is None else Beginning(trunk, is_same_run=True)
