"""Learning rate and length of a run as pure functions of tokens, so that runs of different batch sizes compare."""

import math
from dataclasses import dataclass

from core.settings.training_config import TrainingConfig


def learning_rate(training: TrainingConfig, *, tokens: float, total_tokens: float) -> float:
    """Learning rate after `tokens` of `total_tokens`, in [0, training.learning_rate].

    A step from token a to token b uses the rate at (a + b) / 2, so neither the first step of a warm-up nor the last
    step of a cooldown has a rate of zero.

    Args:
        training: Its warm-up is a share, as `with_warmup_share` gives it.
    """
    assert training.warmup_tokens is None, "with_warmup_share comes first"
    assert training.warmup_steps is None, "with_warmup_share comes first"
    progress = min(max(tokens / total_tokens, 0.0), 1.0)
    return training.learning_rate * _factor(training, progress)


def warmup_share(training: TrainingConfig, *, total_tokens: float, tokens_per_step: float) -> float:
    """The warm-up as a share of the tokens of a training; above 1 if the training is shorter."""
    if training.warmup_tokens is not None:
        return training.warmup_tokens / total_tokens
    if training.warmup_steps is not None:
        return training.warmup_steps * tokens_per_step / total_tokens
    return training.warmup


def with_warmup_share(training: TrainingConfig, *, total_tokens: float, tokens_per_step: float) -> TrainingConfig:
    """The settings with a warm-up in tokens or steps as a share of a training's tokens.

    Raises:
        ValueError: The warm-up does not end before the cooldown begins.
    """
    share = warmup_share(training, total_tokens=total_tokens, tokens_per_step=tokens_per_step)
    cooldown = training.cooldown if training.schedule == "wsd" else 0.0
    if share + cooldown > 1:
        name = "warmup_tokens" if training.warmup_tokens is not None else "warmup_steps"
        raise ValueError(
            f"training.{name}={getattr(training, name):,} is {share:.0%} of the {total_tokens:,.0f} tokens, and with a "
            f"cooldown of {cooldown:.0%} more than all; lower it, or train on more tokens"
        )
    return training.model_copy(update={"warmup": share, "warmup_tokens": None, "warmup_steps": None})


def decay_per_step(training: TrainingConfig, *, total_tokens: float, tokens_per_step: float) -> float:
    """The weight decay with which old updates weigh 1/e after `weight_decay_timescale` of the tokens, or the set one.

    Source: arXiv:2405.13698; AdamW averages updates over 1 / (learning rate x weight decay) steps.
    """
    if training.weight_decay_timescale is None:
        return training.weight_decay
    steps = training.weight_decay_timescale * total_tokens / tokens_per_step
    return 1.0 / (training.learning_rate * steps)


def _factor(training: TrainingConfig, progress: float) -> float:
    warmup = training.warmup
    if progress < warmup:
        return progress / warmup
    if training.schedule == "constant":
        return 1.0
    if training.schedule == "wsd":
        return cooled((progress - (1.0 - training.cooldown)) / training.cooldown) if training.cooldown > 0 else 1.0
    annealed = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    left = 0.5 * (1.0 + math.cos(math.pi * annealed)) if training.schedule == "cosine" else 1.0 - annealed
    return training.floor + (1.0 - training.floor) * left


def cooled(share: float) -> float:
    """Factor on the learning rate after this share of a cooldown, in [0, 1]: 1 before the cooldown, 0 after it.

    The form is 1 - sqrt(share), which reaches a lower loss than a linear cooldown of equal length.

    Source: arXiv:2405.18392.
    """
    return 1.0 - math.sqrt(min(max(share, 0.0), 1.0))


@dataclass(frozen=True)
class StepPlan:
    """Steps of a run in epochs, in the terms of step-based trainers (system A's log prints these numbers)."""

    num_steps: int
    """Optimizer steps; only whole global batches count."""
    warmup_steps: int
    annealing_steps: int
    """(1 - warmup) x num_steps, rounded down as those trainers do."""
    micro_batches_per_worker: int
    """Forward/backward passes per worker and epoch, a short last one included."""
    accumulation: int
    """Forward/backward passes per worker and optimizer step."""


def plan_steps(
    *, num_rows: int, epochs: float, batch_size: int, micro_batch_size: int, num_workers: int = 1, warmup: float = 0.0
) -> StepPlan:
    """Number of steps for `epochs` passes over `num_rows` rows; at least one.

    A batch may span two epochs, so no row is dropped between epochs; an incomplete last batch of the run is dropped.

    Args:
        batch_size: Rows per step over all workers.
        micro_batch_size: Rows per forward/backward pass of one worker.
        warmup: Share of the steps, in [0, 1].
    """
    num_steps = max(1, math.floor(epochs * num_rows / batch_size))
    rows_per_worker = math.ceil(batch_size / num_workers)
    return StepPlan(
        num_steps=num_steps,
        warmup_steps=math.floor(warmup * num_steps),
        annealing_steps=math.floor((1.0 - warmup) * num_steps),
        micro_batches_per_worker=math.ceil(num_rows / num_workers / micro_batch_size),
        accumulation=math.ceil(rows_per_worker / micro_batch_size),
    )


@dataclass(frozen=True)
class RunLength:
    """Length of a run: it ends at the first step that reaches `tokens`, or after `num_steps` if epochs are set."""

    tokens: float
    schedule_tokens: float
    """Length that the learning-rate schedule uses: `tokens` rounded up to whole steps."""
    num_steps: int | None = None

    def is_reached(self, *, tokens: int, step: int) -> bool:
        """True if the run is over after `step` steps and `tokens` tokens in total."""
        return step >= self.num_steps if self.num_steps is not None else tokens >= self.tokens


def run_length(training: TrainingConfig, *, num_rows: int, num_tokens: int) -> RunLength:
    """Length of a run over a training split with `num_rows` rows and `num_tokens` tokens.

    Raises:
        ValueError: Neither training.tokens nor training.epochs is set.
    """
    if training.epochs is not None:
        plan = plan_steps(num_rows=num_rows, epochs=training.epochs, batch_size=training.batch_size, micro_batch_size=1)
        tokens = plan.num_steps * training.batch_size * num_tokens / num_rows
        return RunLength(tokens, schedule_tokens=tokens, num_steps=plan.num_steps)
    if training.tokens is None:
        raise ValueError("the run has no length: set training.tokens or training.epochs")
    # The schedule ends with the last whole step, which would otherwise have a learning rate of zero.
    if training.batch_schedule is not None:
        reached = 0.0
        while reached < training.tokens:
            reached += training.batch_size_after(reached / training.tokens) * num_tokens / num_rows
        return RunLength(float(training.tokens), schedule_tokens=reached)
    tokens_per_step = training.batch_size * num_tokens / num_rows
    return RunLength(
        float(training.tokens), schedule_tokens=math.ceil(training.tokens / tokens_per_step) * tokens_per_step
    )
