"""When training has failed beyond recovery, told from a bad step that it gets over."""

import math
from dataclasses import dataclass

from core.step.optimizer_step import StepResult

_LOSS_FACTOR = 2.0
"""A loss of so many times that of a model that knows nothing is no longer a bad batch."""

_NORM_FACTOR = 1000.0
"""Gradient spikes of 10 to 100 times the usual are common and clipped away; this is far outside."""

_DECAY = 0.95
_STEPS_TO_LEARN_USUAL = 10


@dataclass
class DivergenceWatch:
    """Judges one step after another; remembers what gradients of this run usually are."""

    vocabulary_size: int
    first_loss: float = 0.0
    usual_norm: float = 0.0
    """Running average of gradient norms."""
    num_steps: int = 0

    def verdict(self, result: StepResult, *, step: int) -> str | None:
        """Why the run has diverged at this step, with its numbers; None while it has not."""
        why = self._fault(result)
        if why is None:
            self._learn(result)
            return None
        return (
            f"diverged at step {step}: {why}; loss {result.loss:.4g} nats per token, "
            f"gradient norm {result.gradient_norm:.4g}, learning rate {result.learning_rate:.4g}. "
            "Lower training.learning_rate, raise training.warmup, or clip lower."
        )

    def _fault(self, result: StepResult) -> str | None:
        if not math.isfinite(result.loss):
            return "the loss is not finite"
        if not math.isfinite(result.gradient_norm):
            return "the gradient is not finite"
        ignorance = math.log(self.vocabulary_size)
        if self.num_steps > 0 and result.loss > _LOSS_FACTOR * max(ignorance, self.first_loss):
            return f"the loss exploded to over {_LOSS_FACTOR:g} times that of knowing nothing ({ignorance:.4g})"
        if self.num_steps >= _STEPS_TO_LEARN_USUAL and result.gradient_norm > _NORM_FACTOR * self.usual_norm > 0:
            return f"the gradient exploded to over {_NORM_FACTOR:g} times its usual norm ({self.usual_norm:.4g})"
        return None

    def _learn(self, result: StepResult) -> None:
        if self.num_steps == 0:
            self.first_loss, self.usual_norm = result.loss, result.gradient_norm
        self.usual_norm = _DECAY * self.usual_norm + (1 - _DECAY) * result.gradient_norm
        self.num_steps += 1
