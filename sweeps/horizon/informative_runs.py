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
    targets: Sequence[Mapping[str, Any]],
    tokens: int,
    cost: Callable[[Run], float],
) -> int:
    """Index of the candidate that most narrows the difference between the favourite and its rivals, per cost.

    Args:
        candidates: Possible runs, at least one.
        targets: Settings, one of which will be named the best at `tokens`.
        cost: Positive; tokens for instance.
    """
    taught = information(candidates, fitted, targets, tokens)
    return int(np.argmax(taught / np.array([cost(one) for one in candidates])))


def information(
    candidates: Sequence[Run], fitted: LossOverLength, targets: Sequence[Mapping[str, Any]], tokens: int
) -> np.ndarray:
    """Expected fall of the variance between the favourite and its rivals by each candidate, in squared nats.

    The favourite has the lowest expected loss; each of the others is a rival in proportion to the expected loss that it
    would save. A loss moves the expected losses of the targets along one direction, by a standard normal number, so the
    variance of a difference falls by the square of the difference of that direction. Where favourite and rivals move
    alike, nothing is learnt.
    """
    lengths = [length for _, length in candidates]
    predicted, steps = fitted.lessons([settings for settings, _ in candidates], lengths, targets, tokens)
    favourite, rivals = int(predicted.mean.argmin()), predicted.samples.argmin(axis=1)
    saved = predicted.samples[:, favourite] - predicted.samples.min(axis=1)
    weights = np.bincount(rivals, weights=saved, minlength=len(targets))
    return np.asarray(weights @ (steps - steps[favourite]) ** 2 / max(float(weights.sum()), 1e-12))
