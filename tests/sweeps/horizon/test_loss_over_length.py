"""The loss over settings and length: recovered from short runs, sure where it may be, and in doubt where it must be."""

import math
from typing import Any

import numpy as np

from sweeps.horizon.loss_over_length import KnownLoss, LossOverLength, fit_loss_over_length
from sweeps.horizon.setting_axes import axes_of
from sweeps.settings.search_space import Distribution
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE

SPACE = {
    LEARNING_RATE: Distribution(log_uniform=(3e-4, 2e-2)),
    BATCH: Distribution(choice=(16, 32, 64, 128, 256, 512, 1024)),
    "model.form": Distribution(choice=("roberta", "modern")),
    "training.weight_decay": Distribution(uniform=(0.0, 0.2)),
}
RATE_AND_BATCH = {path: SPACE[path] for path in (LEARNING_RATE, BATCH)}
FULL = 80_000_000
NOISE = 0.002


def loss_of(
    at: dict[str, Any], tokens: int, *, rate_exponent: float = 0.2, batch_exponent: float = 0.45, full: int = FULL
) -> float:
    """A valley, steep towards large learning rates and flat towards small batches, that moves with tokens."""
    t = math.log(tokens / full)
    rate = math.log(at[LEARNING_RATE] / 3e-3) - rate_exponent * t
    batch = math.log(at[BATCH] / 256) - batch_exponent * t
    bowl = (
        0.03 * rate**2
        + 0.02 * math.exp(rate)
        + 0.03 * math.log1p(math.exp(batch)) ** 2
        + 0.01 * (rate - batch / 2) ** 2
    )
    form = 0.05 if at.get("model.form") == "roberta" else 0.0
    return 2.0 + math.exp(-0.3 * t) * (0.4 + bowl + form)


def drawn(count: int, tokens: int, *, seed: int, space: dict[str, Distribution] = RATE_AND_BATCH) -> list[KnownLoss]:
    rng = np.random.default_rng(seed)
    known = []
    for _ in range(count):
        at = {path: values.grid(64)[rng.integers(len(values.grid(64)))] for path, values in space.items()}
        known.append(KnownLoss(at, tokens, loss_of(at, tokens) + float(rng.normal(0, NOISE))))
    return known


def fitted(known: list[KnownLoss], space: dict[str, Distribution] = RATE_AND_BATCH) -> LossOverLength:
    model = fit_loss_over_length(axes_of(space), known)
    assert model is not None
    return model


def full_grid() -> list[dict[str, Any]]:
    return [
        {LEARNING_RATE: rate, BATCH: batch} for rate in SPACE[LEARNING_RATE].grid(10) for batch in SPACE[BATCH].grid(7)
    ]


def two_lengths(seed: int = 0) -> list[KnownLoss]:
    return [*drawn(16, FULL // 16, seed=seed), *drawn(16, FULL // 6, seed=seed + 100)]


def test_short_runs_name_settings_that_are_nearly_the_best_at_the_full_length() -> None:
    grid = full_grid()
    true = np.array([loss_of(at, FULL) for at in grid])
    predicted = fitted(two_lengths()).predict(grid, FULL)
    assert true[predicted.mean.argmin()] - true.min() < 3 * NOISE
    near = true < true.min() + 0.2
    assert np.corrcoef(predicted.mean[near], true[near])[0, 1] > 0.95
