"""Cooldown branches: the loss that a `wsd` run would reach if it ended at a pause.

Before its cooldown, the learning rate of a `wsd` run does not depend on its length. One run, the trunk, therefore
represents runs of all lengths: a short branch with its own cooldown estimates the final loss at the pause, and the
trunk then resumes from the checkpoint before the branch.

Source: Hägele et al., arXiv:2405.18392 (scaling laws from cooldowns of one constant run).
"""

import math
from dataclasses import dataclass

from core.settings.schedule import cooled, learning_rate
from core.settings.training_config import TrainingConfig


@dataclass(frozen=True)
class Pause:
    """A pause of a run: a checkpoint, and the cooldown branch trained from it."""

    at_tokens: int
    """Tokens after which the run pauses, rounded up to a whole step."""
    cooldown_tokens: int
    """Tokens of the branch, rounded up to whole steps. 0: evaluate the model without a cooldown."""


@dataclass(frozen=True)
class Branch:
    """Result of a branch."""

    metrics: dict[str, float]
    """Holdout metrics at the end of the branch, under the keys of reports."""
    tokens: int
    """Tokens trained in the branch, without those of the trunk."""
    training_s: float
    """Seconds spent in the steps of the branch."""

    def as_report(self) -> dict[str, float]:
        """The metrics under `branch/` keys, to be reported beside the trunk's at the trunk's tokens."""
        values = {f"branch/{name.removeprefix('holdout/')}": value for name, value in self.metrics.items()}
        return values | {"branch/tokens": float(self.tokens), "branch/training_s": self.training_s}


@dataclass(frozen=True)
class BranchSchedule:
    """Learning rates of a branch: from the trunk's rate down to zero."""

    begin_tokens: int
    """Tokens of the trunk at which the branch begins."""
    num_steps: int
    length_tokens: float
    """Tokens of all `num_steps`; whole steps, so that the last step has a learning rate above zero."""

    def learning_rate(self, training: TrainingConfig, *, tokens: float, total_tokens: float) -> float:
        """Learning rate at `tokens`, which include those of the trunk; like `schedule.learning_rate`."""
        trunk = learning_rate(training, tokens=self.begin_tokens, total_tokens=total_tokens)
        return trunk * cooled((tokens - self.begin_tokens) / self.length_tokens)


def branch_schedule(pause: Pause, *, begin_tokens: int, tokens_per_step: float) -> BranchSchedule:
    """Schedule of the branch of a pause, for a trunk that has trained on `begin_tokens`."""
    num_steps = math.ceil(pause.cooldown_tokens / tokens_per_step)
    return BranchSchedule(begin_tokens, num_steps, num_steps * tokens_per_step)
