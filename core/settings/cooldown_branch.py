"""Where a run pauses, and what it would reach if it ended there.

The learning rate of a `wsd` run does not depend on where it will end until its cooldown begins, so one run, the trunk,
stands for runs of every length: a short branch with a cooldown of its own shows what it would come to, and the trunk
goes on from the checkpoint before the branch as if there had been none.

Source: Hägele et al., arXiv:2405.18392 (scaling laws from cooldowns of one constant run).
"""

import math
from dataclasses import dataclass

from core.settings.schedule import cooled, learning_rate
from core.settings.training_config import TrainingConfig


@dataclass(frozen=True)
class Pause:
    """Where a run pauses with a checkpoint, and the branch that it trains from there."""

    at_tokens: int
    """The first step at or past so many tokens is the last one."""
    cooldown_tokens: int
    """Of the branch, at least: it takes whole steps. 0: the model is evaluated as it is."""


@dataclass(frozen=True)
class Branch:
    """What a branch came to."""

    metrics: dict[str, float]
    """Of the holdout at its end, under the keys of reports."""
    tokens: int
    """That it trained on, besides those of the trunk."""
    training_s: float

    def as_report(self) -> dict[str, float]:
        """Its figures under keys of their own: they stand beside the trunk's, at the tokens of the trunk."""
        values = {f"branch/{name.removeprefix('holdout/')}": value for name, value in self.metrics.items()}
        return values | {"branch/tokens": float(self.tokens), "branch/training_s": self.training_s}


@dataclass(frozen=True)
class BranchSchedule:
    """Learning rates of a branch: from the trunk's down to zero."""

    begin_tokens: int
    """Of the trunk, where it leaves."""
    num_steps: int
    length_tokens: float
    """Of whole steps, so that the last one is not spent at a learning rate of zero."""

    def learning_rate(self, training: TrainingConfig, *, tokens: float, total_tokens: float) -> float:
        """At so many tokens, those of the trunk before the branch included; as `schedule.learning_rate` has it."""
        trunk = learning_rate(training, tokens=self.begin_tokens, total_tokens=total_tokens)
        return trunk * cooled((tokens - self.begin_tokens) / self.length_tokens)


def branch_schedule(pause: Pause, *, begin_tokens: int, tokens_per_step: float) -> BranchSchedule:
    """The branch of a pause, for a trunk that has come to `begin_tokens`."""
    num_steps = math.ceil(pause.cooldown_tokens / tokens_per_step)
    return BranchSchedule(begin_tokens, num_steps, num_steps * tokens_per_step)
