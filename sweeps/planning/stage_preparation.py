"""The stages of a training: formats them as system A logs them, and prepares them for a lane's workers."""

from collections.abc import Iterator, Sequence

from core.training.training_stage import Stage
from data_pipeline.preparation.node_copies import serve_copies
from sweeps.lanes.mailbox import StageAssignment
from sweeps.settings.stage_config import steps_of, tokens_of


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


def stage_assignments(stages: Sequence[Stage], *, is_shared: bool) -> tuple[StageAssignment, ...]:
    """The stages as sent to the workers of a lane.

    Args:
        is_shared: Whether all nodes see the results folder.
    """
    return tuple(
        StageAssignment(
            run=stage.run.model_dump(mode="json"),
            prepared_folder=str(stage.data.folder),
            corpus_server=None if is_shared else serve_copies(stage.data.folder),
        )
        for stage in stages
    )


def tokens_of_stage(stage: Stage) -> int:
    """Tokens that a stage trains on; a stage with epochs trains whole steps."""
    return tokens_of(stage.run, num_rows=stage.data.train.num_rows, num_tokens=stage.data.train.num_tokens)
