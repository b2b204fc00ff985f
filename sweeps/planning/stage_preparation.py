"""The stages of a training: prepares their rows, counts their tokens, and formats them as system A logs them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from core.training.staged_run import Stage
from data_pipeline.preparation.node_copies import serve_copies
from sweeps.lanes.mailbox import StageAssignment
from sweeps.planning.preparation import prepare_with_progress
from sweeps.settings.stage_config import steps_of, tokens_of
from sweeps.settings.sweep_config import SweepConfig


def prepare_stages(sweep: SweepConfig, results_folder: Path, console: Console) -> tuple[Stage, ...]:
    """Each stage with its rows. Documents are tokenized once; each row length gets its own table of the same tokens.

    Raises:
        CorpusError: The corpus is missing, empty, or has too many rejects.
    """
    runs = sweep.stage_runs()
    rows = [sweep.model_copy(update={"packing": sweep.packing_of(run)}) for run in runs]
    return tuple(
        Stage(run, prepare_with_progress(one, results_folder, console)) for run, one in zip(runs, rows, strict=True)
    )


def with_tokens_of_stages(sweep: SweepConfig, stages: Sequence[Stage]) -> SweepConfig:
    """The sweep with the tokens of all its stages as its budget; unchanged without stages."""
    if not stages:
        return sweep
    total = sum(tokens_of_stage(stage) for stage in stages)
    return sweep.model_copy(update={"budget": sweep.budget.model_copy(update={"tokens_per_trial": total})})


def stages_in_words(stages: Sequence[Stage], *, num_workers: int) -> Iterator[str]:
    """One line per stage, with its steps and tokens."""
    for number, stage in enumerate(stages, start=1):
        train, training = stage.data.train, stage.run.training
        steps = steps_of(stage.run, num_rows=train.num_rows, num_tokens=train.num_tokens, num_workers=num_workers)
        is_auto = training.micro_batch_size == "auto"
        accumulation = "" if is_auto else f" = {num_workers} x {training.micro_batch_size} x {steps.accumulation}"
        yield (
            f"stage {number}: rows of {train.sequence_length} tokens, {train.num_rows:,} samples, "
            f"batch {training.batch_size}{accumulation}; {steps.num_steps:,} steps, {steps.warmup_steps:,} of them "
            f"warm-up; {tokens_of_stage(stage):,} tokens; no sample dropped"
        )


def stage_assignments(sweep: SweepConfig, results_folder: Path, *, is_shared: bool) -> tuple[StageAssignment, ...]:
    """The stages as sent to the workers of a lane; their rows are prepared already.

    Args:
        is_shared: Whether all nodes see the results folder.
    """
    return tuple(
        StageAssignment(
            run=stage.run.model_dump(mode="json"),
            prepared_folder=str(stage.data.folder),
            corpus_server=None if is_shared else serve_copies(stage.data.folder),
        )
        for stage in prepare_stages(sweep, results_folder, Console(quiet=True))
    )


def tokens_of_stage(stage: Stage) -> int:
    """Tokens that a stage trains on; a stage with epochs trains whole steps."""
    return tokens_of(stage.run, num_rows=stage.data.train.num_rows, num_tokens=stage.data.train.num_tokens)
