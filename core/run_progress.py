"""How far a run is."""

from dataclasses import dataclass, field, replace

from core.optimizer_step import StepResult


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
