"""The luck of the lowest of several noisy means: it is lower than a new measurement of the same settings would be."""

from collections.abc import Sequence

import numpy as np

_DRAWS = 2000


def luck_of_lowest(means: Sequence[float], errors: Sequence[float]) -> float:
    """Expected amount by which the lowest mean lies below its expectation, in the unit of the means; 0 or more.

    A parametric bootstrap: noise is drawn on top of means that are first drawn together by as much as noise drove them
    apart, and the lowest is compared with the mean that it was drawn around. The draws are always the same.

    Args:
        means: At least one.
        errors: Standard error of each mean.
    """
    centers, deviations = np.asarray(means, float), np.asarray(errors, float)
    # Noise spreads the means: the spread of what they estimate is smaller (method of moments).
    spread = centers.var()
    shrinkage = np.sqrt(max(0.0, 1 - (deviations**2).mean() / spread)) if spread > 0 else 0.0
    centers = centers.mean() + shrinkage * (centers - centers.mean())
    noise = np.random.default_rng(0).standard_normal((_DRAWS, len(centers))) * deviations
    lowest = (centers + noise).argmin(axis=1)
    return max(0.0, -float(noise[np.arange(_DRAWS), lowest].mean()))
