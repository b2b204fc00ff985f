"""Stages of a training (system A): each has its own row length and its own number of epochs or tokens."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from core.settings.run_config import RunConfig
from core.settings.schedule import StepPlan, plan_steps, warmup_share
from data_pipeline.schema.settings import Count, Settings


class StageConfig(Settings):
    """One stage. Weights and optimizer come from the one before; the schedule begins anew."""

    sequence_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens in a row of this stage. The model's positions cover the longest stage from the beginning. null:
    model.sequence_length."""
    batch_size: Count | None = None
    """Sequences in each optimizer step of this stage, over all workers together. null: training.batch_size."""
    micro_batch_size: Count | Literal["auto"] | None = None
    """Sequences in each forward and backward pass of one worker in this stage. null: training.micro_batch_size."""
    learning_rate: PositiveFloat | None = None
    """Highest learning rate of this stage's schedule. null: training.learning_rate."""
    epochs: PositiveFloat | None = None
    """Passes over the training rows, in whole steps. A stage has epochs or tokens."""
    tokens: Count | None = None
    """Tokens of training, as 20M; padding does not count. A stage has epochs or tokens."""

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        if (self.epochs is None) == (self.tokens is None):
            raise ValueError("give exactly one of epochs and tokens")
        return self

    def run_config(self, whole: RunConfig) -> RunConfig:
        """The run of this stage; `whole` supplies all settings that the stage leaves out."""
        own = {name: getattr(self, name) for name in ("batch_size", "micro_batch_size", "learning_rate")}
        changes = {f"training.{name}": value for name, value in own.items() if value is not None}
        return whole.with_overrides(
            changes
            | {
                "training.tokens": self.tokens,
                "training.epochs": self.epochs,
                "model.sequence_length": self.sequence_length or whole.model.sequence_length,
                "model.max_sequence_length": whole.model.num_positions,
            }
        )


def with_lengths_of_stages(values: dict[str, Any]) -> dict[str, Any]:
    """Raw values of a file, with missing settings of model and budget derived from its stages.

    The model has the row length of the last stage and positions for the longest. The budget is one trial of all stages;
    their tokens are counted with the rows of the corpus (sweeps/planning/resolved_sweep.py).
    """
    stages = values.get("stages")
    if not isinstance(stages, list | tuple) or not all(isinstance(stage, dict) for stage in stages) or not stages:
        return values
    model, budget = values.get("model") or {}, values.get("budget") or {}
    lengths = [stage["sequence_length"] for stage in stages if isinstance(stage.get("sequence_length"), int)]
    if isinstance(model, dict) and lengths:
        if isinstance(stages[-1].get("sequence_length"), int):
            model = {"sequence_length": lengths[-1], **model}
        if max(lengths) > model.get("sequence_length", 0):
            model = {"max_sequence_length": max(lengths), **model}
        values = {**values, "model": model}
    if isinstance(budget, dict):
        values = {**values, "budget": {"trials": 1, **budget}}
    # Early stopping needs other trials to compare with.
    return {"early_stopping": {"method": "none"}, **values}


def steps_of(run: RunConfig, *, num_rows: int, num_tokens: int, num_workers: int = 1) -> StepPlan:
    """The steps of a stage in the terms of system A's log.

    Args:
        num_rows: Training rows of the stage; they hold `num_tokens` tokens.
    """
    training = run.training
    epochs = training.epochs
    if epochs is None:
        assert training.tokens is not None, "a stage has epochs or tokens"
        # The step that reaches the tokens is the last one. The millionth of a step guards against rounding down.
        num_steps = math.ceil(training.tokens / (training.batch_size * num_tokens / num_rows)) + 1e-6
        epochs = num_steps * training.batch_size / num_rows
    micro_batch = training.micro_batch_size
    tokens_per_step = training.batch_size * num_tokens / num_rows
    return plan_steps(
        num_rows=num_rows,
        epochs=epochs,
        batch_size=training.batch_size,
        # Each worker's memory decides the size of `auto`; count with the worker's whole batch.
        micro_batch_size=-(-training.batch_size // num_workers) if micro_batch == "auto" else micro_batch,
        num_workers=num_workers,
        warmup=warmup_share(training, total_tokens=epochs * num_tokens, tokens_per_step=tokens_per_step),
    )


def tokens_of(run: RunConfig, *, num_rows: int, num_tokens: int) -> int:
    """Tokens of a stage; a stage with epochs trains whole steps."""
    if run.training.tokens is not None:
        return run.training.tokens
    steps = steps_of(run, num_rows=num_rows, num_tokens=num_tokens)
    return round(steps.num_steps * run.training.batch_size * num_tokens / num_rows)


def fault_of_stages(
    stages: Sequence[StageConfig], *, num_positions: int, sequence_length: int, num_workers: int, is_swept: bool
) -> list[str]:
    """Conflicts of the stages with the rest of a file.

    Args:
        num_positions: Longest row that the model accepts, in tokens.
        sequence_length: Row length of the model, in tokens.
    """
    faults = []
    if stages and is_swept:
        faults.append("stages describe one training, and search describes many; remove one of the two")
    last = stages[-1].sequence_length if stages else None
    if last is not None and last != sequence_length:
        faults.append(
            f"model.sequence_length={sequence_length} is not the last stage's {last}; remove model.sequence_length"
        )
    for number, stage in enumerate(stages, start=1):
        if stage.sequence_length is not None and stage.sequence_length > num_positions:
            faults.append(
                f"stage {number} has rows of {stage.sequence_length} tokens and the model {num_positions} positions; "
                "remove model.max_sequence_length, or raise it"
            )
        if stage.batch_size is not None and stage.batch_size < num_workers:
            faults.append(
                f"stage {number}: batch_size={stage.batch_size} is below the {num_workers} workers; "
                f"raise it to at least {num_workers}"
            )
    return faults
