"""The expected loss over the search space with its uncertainty: a Gaussian process.

The kernel is Matern 5/2 with a length scale per setting plus noise, fitted by maximum likelihood (scikit-learn). One
model answers two questions: the effect of each setting on the loss, and the expected improvement of one more trial.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from sweeps.search_space.distribution import Distribution, SearchSpace

FEWEST_TRIALS = 6
_MOST_TRIALS = 200
"""The cost of the fit grows with the cube of the trials; more are thinned evenly over the losses."""
_CANDIDATES = 512
_MOST_AVERAGED = 64


@dataclass(frozen=True)
class LossCurve:
    """The expected loss against one setting, averaged over the other settings of the trials."""

    values: tuple[Any, ...]
    mean: np.ndarray
    std: np.ndarray
    """Standard deviation of the mean, by the uncertainty of the model."""


class LossSurface:
    """A model of the loss over a search space, made by `fit_surface`."""

    def __init__(
        self,
        space: SearchSpace,
        model: Any,
        rows: np.ndarray,
        settings: Sequence[Mapping[str, Any]],
        *,
        scale_nats: float,
    ) -> None:
        """
        Args:
            scale_nats: Standard deviation of the losses, in which the model counts.
        """
        self._space, self._model, self._rows, self._settings = space, model, rows, settings
        self._scale_nats = scale_nats

    @property
    def noise_nats(self) -> float:
        """Standard deviation of the residuals."""
        return float(math.sqrt(self._noise_variance()))

    def curve(self, path: str, *, points: int = 25) -> LossCurve:
        """The expected loss against one setting."""
        values = self._space[path].grid(points)
        step = max(1, len(self._settings) // _MOST_AVERAGED)
        others = self._settings[::step]
        means, deviations = [], []
        for value in values:
            rows = np.array([_encoded(self._space, {**settings, path: value}) for settings in others])
            mean, covariance = self._model.predict(rows, return_cov=True)
            means.append(mean.mean())
            deviations.append(math.sqrt(max(covariance.mean() - self._noise_variance() / len(rows), 0.0)))
        return LossCurve(values, np.array(means), np.array(deviations))

    def expected_improvement(self, *, seed: int = 0) -> float:
        """The largest expected improvement on the best expected loss, over the whole space, in nats.

        Source: Jones et al. 1998, with the best posterior mean instead of the best loss, because losses are noisy.
        """
        rng = np.random.default_rng(seed)
        rows = np.array([_drawn(self._space, rng) for _ in range(_CANDIDATES)])
        mean, std = self._model.predict(np.concatenate([rows, self._rows]), return_std=True)
        std = np.sqrt(np.maximum(std**2 - self._noise_variance(), 1e-18))
        best = mean[_CANDIDATES:].min()
        z = (best - mean) / std
        improvement = (best - mean) * ndtr(z) + std * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        return float(improvement.max())

    def _noise_variance(self) -> float:
        return float(self._model.kernel_.k2.noise_level * self._scale_nats**2)


def fit_surface(
    space: SearchSpace,
    settings: Sequence[Mapping[str, Any]],
    losses: Sequence[float],
    *,
    noise_nats: float | None = None,
) -> LossSurface | None:
    """The model of these trials; None with too few trials, an empty space or equal losses.

    Args:
        settings: Per trial, a value inside the space for every setting.
        losses: Per trial, in nats per predicted token.
        noise_nats: Standard deviation of losses at equal settings. None: fitted from the losses, a weak estimate with
            few trials.
    """
    if len(losses) < FEWEST_TRIALS or not space or max(losses) == min(losses):
        return None
    # Importing scikit-learn takes a second.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    order = np.argsort(losses, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), _MOST_TRIALS)).round().astype(int))]
    rows = np.array([_encoded(space, settings[index]) for index in chosen])
    known = np.array([losses[index] for index in chosen])
    noise = WhiteKernel(1e-2, (1e-4, 1.0))
    if noise_nats:
        noise = WhiteKernel(float((noise_nats / known.std()) ** 2), "fixed")
    signal = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(np.ones(rows.shape[1]), (5e-2, 1e2), nu=2.5)
    model = GaussianProcessRegressor(signal + noise, normalize_y=True, n_restarts_optimizer=1, random_state=0)
    with warnings.catch_warnings():
        # A length scale at its bound means that the setting has no effect, or hardly any.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, known)
    chosen_settings = [settings[index] for index in chosen]
    return LossSurface(space, model, rows, chosen_settings, scale_nats=float(known.std()))


def _encoded(space: SearchSpace, settings: Mapping[str, Any]) -> list[float]:
    return [number for path, distribution in space.items() for number in _coordinates(distribution, settings[path])]


def _coordinates(distribution: Distribution, value: Any) -> list[float]:
    """Position of a value in its range, from 0 to 1 on the scale of the range; one-hot for a list of words."""
    ends = distribution.extremes()
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        return [float(repr(value) == repr(listed)) for listed in ends]
    low, high = min(ends), max(ends)
    if low == high:
        return [0.0]
    if distribution.kind.startswith("log") or (distribution.kind == "choice" and low > 0):
        return [math.log(value / low) / math.log(high / low)]
    return [(value - low) / (high - low)]


def _drawn(space: SearchSpace, rng: np.random.Generator) -> list[float]:
    row: list[float] = []
    for distribution in space.values():
        if distribution.kind == "choice":
            choices = distribution.extremes()
            row += _coordinates(distribution, choices[int(rng.integers(len(choices)))])
        else:
            row.append(float(rng.uniform()))
    return row
