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
"""Points of a thinned training curve: a page with a hundred trials still opens at once."""


@dataclass(frozen=True)
class Curve:
    """Finite losses in nats per predicted token over training tokens."""

    tokens: np.ndarray
    losses: np.ndarray

    @property
    def is_empty(self) -> bool:
        """Whether the curve has no point."""
        return len(self.tokens) == 0

    def thinned(self, points: int = _MAX_POINTS) -> "Curve":
        """The curve with at most `points` points, each a mean of neighbours."""
        if len(self.tokens) <= points:
            return self
        parts = np.array_split(np.arange(len(self.tokens)), points)
        means = [np.array([values[part].mean() for part in parts]) for values in (self.tokens, self.losses)]
        return Curve(means[0], means[1])


@dataclass(frozen=True)
class TrialCurves:
    """Curves and means of the reports of one trial."""

    train: Curve
    """Means over the steps before each report, at the trial's own masking rate."""
    holdout: Curve
    step_ms: dict[str, float] = field(default_factory=dict)
    """Stretch (`forward`, `backward`, ...) to its mean milliseconds per step."""
    share_of_matmul_rate: float | None = None
    """Floating-point rate over that of large matrix products on the same device, in [0, 1]."""
    noise_scale_rows: float | None = None
    """Last reported gradient noise scale, in rows."""


def read_curves(reports: Iterable[Mapping[str, float]]) -> TrialCurves:
    """The curves of one trial, from its reports in order of tokens."""
    known = list(reports)
    # A report covers the steps since the last report, so its means are weighted by them.
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
