"""Reports of a run while it trains: means since the previous report."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from core.step.optimizer_step import StepResult
from core.step.step_profile import StepProfile
from core.training.observation import observed

Report = Callable[[dict[str, float]], bool]
"""Takes flat metrics; False ends the run."""


class Reporter:
    """Collects the results of steps and reports their means since the previous report.

    Args:
        report: Receives the metrics.
        every_s: Minimum seconds between reports without an evaluation.
        matmul_rate: Peak rate of the device in FLOP/s, from `matmul_flops_per_s`; 0 if it could not be measured.
        profile: Times of the steps.
    """

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
        """Add one step of `elapsed_s` seconds."""
        self._loss_sum += result.loss * result.num_predicted
        self._auxiliary_sum += result.auxiliary_loss or 0.0
        self._num_predicted += result.num_predicted
        self._num_tokens += result.num_tokens
        self._num_steps += 1
        self._seconds += elapsed_s

    def is_due(self) -> bool:
        """True if enough time has passed for a report without an evaluation."""
        return time.monotonic() - self._sent_at >= self._every_s

    def stretch(self, last: StepResult | None, *, flops_a_token: float | None, num_workers: int) -> dict[str, float]:
        """Metrics of the steps since the previous report; empty if there were none.

        Args:
            last: Result of the last step.
            flops_a_token: FLOPs per token; None omits the metrics that need it.
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
        nothing: dict[str, float] = {}
        values |= observed("profile of steps", lambda: self._profile.read(num_steps=self._num_steps), otherwise=nothing)
        if flops_a_token is not None and self._matmul_rate > 0:
            flops_per_s = tokens_per_s * flops_a_token / num_workers
            values["profile/model_flops_per_s"] = flops_per_s
            values["profile/share_of_matmul_rate"] = flops_per_s / self._matmul_rate
        self._clear()
        return values

    def send(self, values: dict[str, float]) -> bool:
        """Report metrics; False if the caller asks the run to stop."""
        continues = self._report(values)
        self._sent_at = time.monotonic()
        return continues


@dataclass(frozen=True)
class Progress:
    """Progress of a run; together with the tensors of a checkpoint, enough to resume."""

    step: int = 0
    tokens: int = 0
    """Tokens trained on by all workers, padding not counted."""
    position: int = 0
    """Rows trained on by all workers, over all epochs."""
    training_s: float = 0.0
    """Seconds spent in steps; evaluation, checkpoints and reports are not counted."""
    metrics: dict[str, float] = field(default_factory=dict)
    best_loss: float | None = None
    """Lowest holdout loss so far."""

    def after(self, result: StepResult, *, num_rows: int, elapsed_s: float) -> "Progress":
        """Progress after one more step with `num_rows` rows."""
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + result.num_tokens,
            position=self.position + num_rows,
            training_s=self.training_s + elapsed_s,
        )

    def evaluated(self, metrics: dict[str, float]) -> tuple["Progress", bool]:
        """(progress with the metrics of an evaluation, True if its loss is the lowest so far)."""
        loss = metrics["holdout/loss_nats_per_token"]
        is_best = self.best_loss is None or loss < self.best_loss
        return replace(self, metrics=metrics, best_loss=loss if is_best else self.best_loss), is_best
