"""Gradient noise scale: the batch size beyond which larger batches stop paying off.

The squared norm of a gradient averaged over B rows has the expectation |G|^2 + tr(S)/B, with the true gradient G and
the covariance S of one row's gradient. Two batch sizes give two equations. A run has both norms at hand: of one
micro-batch and of the whole batch.

Source: arXiv:1812.06162, appendix A.
"""

import math
from dataclasses import dataclass, replace

_DECAY = 0.95
"""Weight of the past in the averages, which span about twenty measurements."""

_MIN_TOKENS_BETWEEN = 10_000
"""A norm reads all gradients once; with fewer tokens between measurements it would cost over 1 % of the time."""

_MIN_STEPS_BETWEEN_EXTRA_PASSES = 64
"""If a batch is one micro-batch on one worker, half of it takes an extra pass: half a step in 64 is 0.8 %."""


@dataclass(frozen=True)
class NoiseScale:
    """Running averages of |G|^2 and tr(S), kept separately because a mean of ratios would be biased."""

    squared_gradient: float = 0.0
    trace: float = 0.0
    weight: float = 0.0
    """Sum of the weights of the averages: 0 before the first measurement, near 1 after many."""

    def with_measurement(
        self, small_squared_norm: float, small_rows: float, large_squared_norm: float, large_rows: float
    ) -> "NoiseScale":
        """The averages after one more pair of squared norms of mean gradients.

        Args:
            small_rows: Rows of the small gradient; with several workers, the harmonic mean over them.
        """
        gradient, trace = unbiased_estimates(
            small_squared_norm=small_squared_norm,
            small_rows=small_rows,
            large_squared_norm=large_squared_norm,
            large_rows=large_rows,
        )
        return replace(
            self,
            squared_gradient=_DECAY * self.squared_gradient + (1 - _DECAY) * gradient,
            trace=_DECAY * self.trace + (1 - _DECAY) * trace,
            weight=_DECAY * self.weight + (1 - _DECAY),
        )

    def metrics(self) -> dict[str, float]:
        """Metrics for a report: none before the first measurement, and no scale while an estimate is negative."""
        if self.weight == 0.0:
            return {}
        gradient, trace = self.squared_gradient / self.weight, self.trace / self.weight
        found = {"noise/squared_gradient_norm": gradient, "noise/covariance_trace": trace}
        if gradient > 0.0 and trace > 0.0:
            found["noise/scale_rows"] = trace / gradient
        return found


def unbiased_estimates(
    *, small_squared_norm: float, small_rows: float, large_squared_norm: float, large_rows: float
) -> tuple[float, float]:
    """(|G|^2, tr(S) of one row) from the squared norms of two mean gradients; either can be negative by chance."""
    gradient = (large_rows * large_squared_norm - small_rows * small_squared_norm) / (large_rows - small_rows)
    trace = (small_squared_norm - large_squared_norm) / (1.0 / small_rows - 1.0 / large_rows)
    return gradient, trace


def steps_between_measurements(*, tokens_per_step: float, needs_extra_pass: bool) -> int:
    """Number of steps between measurements, such that they cost less than 1 % of the time."""
    steps = math.ceil(_MIN_TOKENS_BETWEEN / tokens_per_step)
    return max(steps, _MIN_STEPS_BETWEEN_EXTRA_PASSES) if needs_extra_pass else steps
