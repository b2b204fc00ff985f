"""Detect divergence: distinguish a failed training from a bad step that it recovers from."""

import math
from dataclasses import dataclass

from core.step.optimizer_step import StepResult

_LOSS_FACTOR = 2.0
"""A bad batch does not raise the loss above this multiple of the loss of a uniform prediction."""

_NORM_FACTOR = 1000.0
"""Gradient spikes of 10 to 100 times the usual norm are common, and clipping handles them."""

_DECAY = 0.95
_STEPS_TO_LEARN_USUAL = 10


@dataclass
class DivergenceWatch:
    """Checks every step for divergence; keeps a running average of the gradient norm."""

    vocabulary_size: int
    first_loss: float = 0.0
    usual_norm: float = 0.0
    """Running average of the gradient norms."""
    num_steps: int = 0

    def verdict(self, result: StepResult, *, step: int) -> str | None:
        """Message with numbers and remedy if the run diverged at this step; otherwise None."""
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
            return f"the loss is over {_LOSS_FACTOR:g} times that of a uniform prediction ({ignorance:.4g})"
        if self.num_steps >= _STEPS_TO_LEARN_USUAL and result.gradient_norm > _NORM_FACTOR * self.usual_norm > 0:
            return f"the gradient norm is over {_NORM_FACTOR:g} times its running average ({self.usual_norm:.4g})"
        return None

    def _learn(self, result: StepResult) -> None:
        if self.num_steps == 0:
            self.first_loss, self.usual_norm = result.loss, result.gradient_norm
        self.usual_norm = _DECAY * self.usual_norm + (1 - _DECAY) * result.gradient_norm
        self.num_steps += 1
