"""The run that teaches most about the best settings at the full length, per token."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sweeps.horizon.loss_over_length import LossOverLength

Run = tuple[Mapping[str, Any], int]
"""Settings and the tokens that they are trained for."""


def most_informative(
    candidates: Sequence[Run],
    fitted: LossOverLength,
    targets: Sequence[Run],
    cost: Callable[[Run], float],
) -> int:
    """Index of the candidate that most narrows the differences between likely winners, per cost.

    An observation moves the expected losses of the targets along one direction s, by a standard normal step. Where all
    targets move alike, nothing is learnt about their order. So the value of a run is the variance of s over the
    targets, each weighted by its probability of being the best: the expected fall of the variance of the difference
    between two targets drawn by that probability.

    Args:
        candidates: Possible runs, at least one.
        targets: Settings at the full length, one of which will be named the best.
        cost: Positive; tokens for instance.
    """
    return int(np.argmax(information(candidates, fitted, targets) / np.array([cost(one) for one in candidates])))


def information(candidates: Sequence[Run], fitted: LossOverLength, targets: Sequence[Run]) -> np.ndarray:
    """Expected fall of the variance between likely winners by each candidate, in squared nats."""
    runs = [*targets, *candidates]
    joint = fitted.predict([settings for settings, _ in runs], [tokens for _, tokens in runs])
    count = len(targets)
    best = np.bincount(joint.samples[:, :count].argmin(axis=1), minlength=count) / len(joint.samples)
    variance = np.diag(joint.covariance)[count:] + fitted.noise_sd**2
    steps = joint.covariance[:count, count:] / np.sqrt(np.maximum(variance, 1e-18))
    return np.asarray(best @ (steps - best @ steps) ** 2)
