"""What a run reports while it trains: means over the stretch since the report before."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from core.step.optimizer_step import StepResult
from core.step.step_profile import StepProfile

Report = Callable[[dict[str, float]], bool]
"""Takes flat metrics; False ends the run."""


class Reporter:
    """Gathers what happens between reports; means over that stretch are what a report says."""

    def __init__(self, report: Report, *, every_s: float, matmul_rate: float, profile: StepProfile) -> None:
        self._report = report
        self._every_s = every_s
        self._matmul_rate = matmul_rate
        self._profile = profile
        self._sent_at = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._loss_sum = self._auxiliary_sum = self._seconds = 0.0
        self._num_predicted = self._num_tokens = self._num_steps = 0

    def add(self, result: StepResult, elapsed_s: float) -> None:
        """One more step."""
        self._loss_sum += result.loss * result.num_predicted
        self._auxiliary_sum += result.auxiliary_loss or 0.0
        self._num_predicted += result.num_predicted
        self._num_tokens += result.num_tokens
        self._num_steps += 1
        self._seconds += elapsed_s

    def is_due(self) -> bool:
        """Whether enough time has passed for a report that is not about an evaluation."""
        return time.monotonic() - self._sent_at >= self._every_s

    def stretch(self, last: StepResult | None, *, flops_a_token: float | None, num_workers: int) -> dict[str, float]:
        """Figures of the steps since the report before; empty when there were none.

        Args:
            last: Step taken.
        """
        if last is None or not self._num_steps:
            return {}
        tokens_per_s = self._num_tokens / self._seconds
        values = {
            "train/loss_nats_per_token": self._loss_sum / self._num_predicted,
            "train/learning_rate": last.learning_rate,
            "train/gradient_norm": last.gradient_norm,
            "train/tokens_per_s": tokens_per_s,
        }
        if last.auxiliary_loss is not None:
            values["train/auxiliary_loss"] = self._auxiliary_sum / self._num_steps
        values |= self._profile.read(num_steps=self._num_steps)
        if flops_a_token is not None:
            flops_per_s = tokens_per_s * flops_a_token / num_workers
            values["profile/model_flops_per_s"] = flops_per_s
            values["profile/share_of_matmul_rate"] = flops_per_s / self._matmul_rate
        self._clear()
        return values

    def send(self, values: dict[str, float]) -> bool:
        """The caller's answer: whether to go on."""
        goes_on = self._report(values)
        self._sent_at = time.monotonic()
        return goes_on


@dataclass(frozen=True)
class Progress:
    """How far a run is; with the tensors of a checkpoint, all it takes to go on."""

    step: int = 0
    tokens: int = 0
    """Real tokens trained on, over all workers."""
    position: int = 0
    """Rows trained on, over all workers and epochs."""
    training_s: float = 0.0
    """Time spent in steps; evaluation, checkpoints and reports are not counted."""
    metrics: dict[str, float] = field(default_factory=dict)
    best_loss: float | None = None
    """Lowest holdout loss so far."""

    def after(self, result: StepResult, *, num_rows: int, elapsed_s: float) -> "Progress":
        """Progress after one more step."""
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + result.num_tokens,
            position=self.position + num_rows,
            training_s=self.training_s + elapsed_s,
        )

    def evaluated(self, metrics: dict[str, float]) -> tuple["Progress", bool]:
        """Progress with the metrics of an evaluation, and whether it is the best so far."""
        loss = metrics["holdout/loss_nats_per_token"]
        is_best = self.best_loss is None or loss < self.best_loss
        return replace(self, metrics=metrics, best_loss=loss if is_best else self.best_loss), is_best
