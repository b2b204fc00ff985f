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
    """Index of the candidate that most narrows the differences between likely winners, per cost.

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
    """Expected fall of the variance between likely winners by each candidate, in squared nats.

    A loss moves the expected losses of the targets along one direction, by a standard normal number. Where all targets
    move alike, nothing is learnt about their order. So the value of a run is the variance of its direction over the
    targets, weighted by their probabilities of being the best: half the expected fall of the variance of the difference
    between two targets that are drawn by that probability.
    """
    lengths = [length for _, length in candidates]
    predicted, steps = fitted.lessons([settings for settings, _ in candidates], lengths, targets, tokens)
    best = predicted.probability_of_best()
    return np.asarray(best @ (steps - best @ steps) ** 2)
