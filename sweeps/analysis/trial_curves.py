"""A trial's reports as curves over tokens, and as means over the whole trial."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from core.step.step_stretches import STRETCHES
from sweeps.records.trial_records import LOSS

TRAIN_LOSS = "train/loss_nats_per_token"
_NOISE_SCALE = "noise/scale_rows"
_MAX_POINTS = 240
"""Points that a training curve is thinned to; a page with a hundred trials still opens at once."""


@dataclass(frozen=True)
class Curve:
    """Losses in nats per predicted token over tokens of training; finite ones only."""

    tokens: np.ndarray
    losses: np.ndarray

    @property
    def is_empty(self) -> bool:
        """Whether there is no point."""
        return len(self.tokens) == 0

    def thinned(self, points: int = _MAX_POINTS) -> "Curve":
        """At most that number of points, each the mean of its neighbours."""
        if len(self.tokens) <= points:
            return self
        parts = np.array_split(np.arange(len(self.tokens)), points)
        means = [np.array([values[part].mean() for part in parts]) for values in (self.tokens, self.losses)]
        return Curve(means[0], means[1])


@dataclass(frozen=True)
class TrialCurves:
    """What the reports of one trial add up to."""

    train: Curve
    """Means over the stretch before each report, at the trial's own masking rate."""
    holdout: Curve
    step_ms: dict[str, float] = field(default_factory=dict)
    """Stretch (`forward`, `backward`, ...) to its mean milliseconds a step."""
    share_of_matmul_rate: float | None = None
    """Floating-point rate over that of large matrix products on the same device, in [0, 1]."""
    noise_scale_rows: float | None = None
    """Last gradient noise scale that was reported, in rows."""


def read_curves(reports: Iterable[Mapping[str, float]]) -> TrialCurves:
    """Gather the reports of one trial, in order of tokens."""
    known = list(reports)
    # A report speaks of the steps since the one before it, so that its means weigh as many steps.
    steps = _increments(known, "step")
    seconds = [_seconds(report, tokens) for report, tokens in zip(known, _increments(known, "tokens"), strict=True)]
    step_ms = {stretch: _mean(known, f"profile/{stretch}_ms", steps) for stretch in STRETCHES}
    scales = [report[_NOISE_SCALE] for report in known if math.isfinite(report.get(_NOISE_SCALE, math.nan))]
    return TrialCurves(
        train=_curve(known, TRAIN_LOSS).thinned(),
        holdout=_curve(known, LOSS),
        step_ms={stretch: ms for stretch, ms in step_ms.items() if ms is not None},
        share_of_matmul_rate=_mean(known, "profile/share_of_matmul_rate", seconds),
        noise_scale_rows=scales[-1] if scales else None,
    )


def _curve(reports: Sequence[Mapping[str, float]], key: str) -> Curve:
    points = [(r["tokens"], r[key]) for r in reports if math.isfinite(r.get(key, math.nan))]
    return Curve(np.array([tokens for tokens, _ in points]), np.array([loss for _, loss in points]))


def _increments(reports: Sequence[Mapping[str, float]], key: str) -> list[float]:
    values = [0.0, *(report.get(key, 0.0) for report in reports)]
    return [max(0.0, after - before) for before, after in pairwise(values)]


def _seconds(report: Mapping[str, float], tokens: float) -> float:
    tokens_per_s = report.get("train/tokens_per_s", 0.0)
    return tokens / tokens_per_s if tokens_per_s > 0 else 0.0


def _mean(reports: Sequence[Mapping[str, float]], key: str, weights: Sequence[float]) -> float | None:
    pairs = [(report[key], weight) for report, weight in zip(reports, weights, strict=True) if key in report]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total > 0 else None
