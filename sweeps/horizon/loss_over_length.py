"""The loss over settings and length of training, learnt from losses at any lengths.

The best learning rate and batch size move with the length, so the losses of short runs hardly rank the long ones. A
short run resembles the long run whose settings are its own moved along that shift. The size of the shift is learnt from
this sweep's own lengths; before, and with one length, it is the published one (`SettingAxis`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import ndtr

from sweeps.horizon.one_thread import one_thread
from sweeps.horizon.setting_axes import SettingAxis, coordinate_rows, moved_settings
from sweeps.horizon.shifted_process import Coordinates, ShiftedProcess
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE

FEWEST_LOSSES = 6
"""Losses below which a prediction is mostly prior."""
FARTHEST = 16.0
"""Extrapolation beyond this factor of the longest known length is in doubt."""
_MOST_LOSSES = 120
"""The cost of a fit grows with the cube of the losses; of more, the lowest of each length are kept."""
_SAMPLES = 1024
_SAME_LENGTH = 1.2
"""Lengths closer than this factor say nothing of a shift."""
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class KnownLoss:
    """The annealed loss of settings after a number of tokens."""

    settings: Settings
    """Dotted paths and values; paths without an axis are ignored."""
    tokens: int
    loss: float
    """In nats per predicted token; NaN or infinity: the run diverged."""


@dataclass(frozen=True)
class Exponent:
    """How the best value of a setting moves with tokens D: as D^value on a log axis."""

    value: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    is_learnt: bool
    """Whether the losses narrowed the interval of the prior by a tenth or more."""


@dataclass(frozen=True)
class Predictions:
    """Expected losses of settings, jointly normal; the noise of a seed is not in them."""

    mean: np.ndarray
    """[n], in nats."""
    covariance: np.ndarray
    """[n, n]."""

    @property
    def sd(self) -> np.ndarray:
        """Standard deviations [n]."""
        return np.asarray(np.sqrt(np.maximum(np.diag(self.covariance), 0.0)))

    @cached_property
    @one_thread()
    def samples(self) -> np.ndarray:
        """Joint draws [1024, n], always the same for the same predictions."""
        values, vectors = np.linalg.eigh(self.covariance)
        normal = np.random.default_rng(0).standard_normal((_SAMPLES, len(self.mean)))
        return np.asarray(self.mean + normal * np.sqrt(np.maximum(values, 0.0)) @ vectors.T)

    def probability_of_best(self) -> np.ndarray:
        """Probability [n] that the settings have the lowest expected loss."""
        return np.bincount(self.samples.argmin(axis=1), minlength=len(self.mean)) / _SAMPLES

    def expected_improvement(self, loss: float) -> np.ndarray:
        """Expected improvement [n] on a loss, in nats."""
        sd = np.maximum(self.sd, 1e-12)
        z = (loss - self.mean) / sd
        return np.asarray((loss - self.mean) * ndtr(z) + sd * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))


class LossOverLength:
    """A fitted model, made by `fit_loss_over_length`."""

    def __init__(self, axes: tuple[SettingAxis, ...], known: Sequence[KnownLoss], *, noise_sd: float | None) -> None:
        self.axes = axes
        self._numbers = tuple(axis for axis in axes if axis.scale != "words")
        self._words = tuple(axis for axis in axes if axis.scale == "words")
        self._known = known
        self._process = ShiftedProcess(
            self._coordinates([one.settings for one in known], [one.tokens for one in known]),
            np.array([one.loss for one in known], float),
            shifts=[(axis.exponent, axis.exponent_sd) for axis in self._numbers],
            bowls=[index for index, axis in enumerate(self._numbers) if axis.path in (LEARNING_RATE, BATCH)],
            noise_sd=noise_sd,
        )

    @property
    def noise_sd(self) -> float:
        """Standard deviation of the loss between seeds, in nats: the given one or the fitted."""
        return self._process.noise_sd

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        """Sentences that say what the model does not know; empty if it knows."""
        tokens = [one.tokens for one in self._known if math.isfinite(one.loss)]
        found = []
        if len(tokens) < FEWEST_LOSSES:
            found.append(f"only {len(tokens)} losses are known, and {FEWEST_LOSSES} are the fewest that show a surface")
        if not self.has_lengths:
            found.append("all losses are at one length, so the shift of the best settings is that of published work")
        return tuple(found)

    @property
    def has_lengths(self) -> bool:
        """Whether losses at several lengths are known, so that exponents can be learnt."""
        tokens = [one.tokens for one in self._known if math.isfinite(one.loss)]
        return max(tokens) >= _SAME_LENGTH * min(tokens)

    def knows(self, tokens: int) -> bool:
        """Whether a prediction at this length rests on the losses of this sweep."""
        return not self.doubts_at(tokens)

    def doubts_at(self, tokens: int) -> tuple[str, ...]:
        """The doubts, and one more for a length far beyond the known ones."""
        longest = max(one.tokens for one in self._known if math.isfinite(one.loss))
        if tokens <= FARTHEST * longest:
            return self.doubts
        return (*self.doubts, f"the length is {tokens / longest:.0f} times the longest known one")

    @one_thread()
    def predict(self, settings: Sequence[Settings], tokens: int | Sequence[int]) -> Predictions:
        """Expected losses at a length, or at one length for each of the settings.

        Raises:
            KeyError: Settings without a value for an axis.
        """
        lengths = [tokens] * len(settings) if isinstance(tokens, int) else list(tokens)
        seen = self._process.see(self._coordinates(settings, lengths))
        return Predictions(seen.mean_M, self._process.covariance(seen, seen))

    @one_thread()
    def lessons(
        self, runs: Sequence[Settings], lengths: Sequence[int], about: Sequence[Settings], tokens: int
    ) -> tuple[Predictions, np.ndarray]:
        """Predictions of n settings at a length, and how each of m runs would move them.

        Returns:
            The predictions, and steps [n, m]: the loss of a run moves the expected losses by its column times a
            standard normal number.
        """
        targets = self._process.see(self._coordinates(about, [tokens] * len(about)))
        seen = self._process.see(self._coordinates(runs, lengths))
        deviation = np.sqrt(np.maximum(self._process.variance(seen) + self.noise_sd**2, 1e-18))
        steps = self._process.covariance(targets, seen) / deviation
        return Predictions(targets.mean_M, self._process.covariance(targets, targets)), steps

    def exponents(self) -> dict[str, Exponent]:
        """Exponents of the settings on log axes."""
        found = {}
        for axis, (value, sd) in zip(self._numbers, self._process.shifts, strict=True):
            if axis.scale == "log":
                learnt = sd < 0.9 * axis.exponent_sd
                found[axis.path] = Exponent(value, value - 1.96 * sd, value + 1.96 * sd, learnt)
        return found

    def scaled_down(self, settings: Settings, tokens_from: int, tokens_to: int) -> dict[str, Any]:
        """The settings with learning rate and batch size moved along their exponents to another length."""
        learnt = {path: exponent.value for path, exponent in self.exponents().items()}
        return moved_settings(self.axes, settings, tokens_to / tokens_from, learnt)

    @one_thread()
    def optimum(self, tokens: int, *, full: int | None = None) -> dict[str, Any]:
        """The settings with the lowest expected loss.

        Learning rate and batch size lie within the search space, moved from the full length to this one along the path
        of the optimum, and at most a quarter of their range outside the known settings and these moved to the length.
        Other numbers lie within the search space, and combinations of words are known ones.

        Args:
            full: Length that the search space is for. None: this one.
        """
        coordinates = self._coordinates([one.settings for one in self._known], [one.tokens for one in self._known])
        shift_K = np.array([value for value, _ in self._process.shifts])
        moved_NK = coordinates.x_NK + (math.log(tokens) - coordinates.t_N)[:, None] * shift_K
        low, high = (end(np.concatenate([moved_NK, coordinates.x_NK]), axis=0) for end in (np.min, np.max))
        moves = np.array([axis.path in (LEARNING_RATE, BATCH) for axis in self._numbers], bool)
        along = np.where(moves, shift_K, 0.0) * (0.0 if full is None else math.log(tokens / full))
        lowest = along + np.array([axis.coordinate(axis.low) for axis in self._numbers])
        highest = along + np.array([axis.coordinate(axis.high) for axis in self._numbers])
        rng = np.random.default_rng(0)
        words = np.unique(coordinates.words_NC, axis=0)
        best, width = (low + high) / 2, (high - low) * 0.75 + 1e-9
        best_words = words[:1]
        for _ in range(6):
            x = best + width * rng.uniform(-1, 1, (256, len(best)))
            x[0] = best
            x = np.clip(x, lowest, highest)
            chosen = words[rng.integers(len(words), size=len(x))] if best_words.shape[1] else np.empty((len(x), 0))
            chosen[:64] = best_words
            at = Coordinates(x, chosen, np.full(len(x), math.log(tokens)))
            index = int(self._process.mean_at_mode(at).argmin())
            best, best_words, width = x[index], chosen[index : index + 1], width * 0.4
        values: dict[str, Any] = {
            axis.path: axis.value_at(float(value)) for axis, value in zip(self._numbers, best, strict=True)
        }
        known_words = {
            axis.path: {axis.coordinate(one.settings[axis.path]): one.settings[axis.path] for one in self._known}
            for axis in self._words
        }
        for index, axis in enumerate(self._words):
            values[axis.path] = known_words[axis.path][float(best_words[0, index])]
        return {axis.path: values[axis.path] for axis in self.axes}

    def _coordinates(self, settings: Sequence[Settings], tokens: Sequence[int]) -> Coordinates:
        t_N = np.log(np.array(tokens, float))
        return Coordinates(coordinate_rows(self._numbers, settings), coordinate_rows(self._words, settings), t_N)


@one_thread()
def fit_loss_over_length(
    axes: Sequence[SettingAxis], known: Sequence[KnownLoss], *, noise_sd: float | None = None
) -> LossOverLength | None:
    """The model of these losses; None if none of them is finite. The order of the losses changes nothing.

    Args:
        axes: Swept settings, see `axes_of`.
        noise_sd: Standard deviation between seeds in nats, if it is known.
    """
    usable = [one for one in known if one.tokens > 0]
    if not any(math.isfinite(one.loss) for one in usable):
        return None
    return LossOverLength(tuple(axes), _thinned(sorted(usable, key=_place)), noise_sd=noise_sd)


def _place(one: KnownLoss) -> tuple[int, float, str]:
    loss = one.loss if math.isfinite(one.loss) else math.inf
    return one.tokens, loss, repr(sorted((path, repr(value)) for path, value in one.settings.items()))


def _thinned(known: list[KnownLoss]) -> list[KnownLoss]:
    """At most `_MOST_LOSSES`: of each length the lower losses first."""
    if len(known) <= _MOST_LOSSES:
        return known
    ranks: dict[int, int] = {}
    ranked = []
    for index, one in enumerate(known):
        ranks[one.tokens] = ranks.get(one.tokens, -1) + 1
        ranked.append((ranks[one.tokens], -one.tokens, index))
    return [known[index] for index in sorted(index for _, _, index in sorted(ranked)[:_MOST_LOSSES])]
