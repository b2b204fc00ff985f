"""Spearman's rank correlation, without SciPy, which takes `pretune plan` a second to import."""

from collections.abc import Sequence

import numpy as np


def spearman(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Rank correlation, in [-1, 1]; equal values share the mean of their ranks. 0 if one side has a single value."""
    one, other = _ranks(first), _ranks(second)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[places], float)
