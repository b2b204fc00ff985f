"""Coordinates of settings, with the published shift of each optimum with the length of training.

The best learning rate and batch size move with the number of tokens D of a training: as D^e. Known exponents are the
mean of a wide prior; a sweep learns its own from losses at several lengths.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sweeps.search_space.distribution import Distribution, SearchSpace
from sweeps.settings.setting_paths import BATCH, LEARNING_RATE, MICRO_BATCH, SEED

_WIDTH = 4.0
"""Width of a linear range in coordinates: about that of two decades on a logarithmic axis, so one prior fits both."""
_PUBLISHED = {LEARNING_RATE: (0.307, 0.15), BATCH: (0.5, 0.15)}
"""Mean and standard deviation of the exponent. Learning rate: D^0.307 (arXiv:2503.04715). Batch size: D^0.571
(arXiv:2503.04715), D^0.47 (arXiv:2410.21676), D^0.38 (arXiv:2505.13738)."""
_AT_FIXED_BATCH = (-0.15, 0.15)
"""Of the learning rate where the batch size stays: between D^-0.32 (arXiv:2409.19913) and D^0, disputed."""
_UNKNOWN = (0.0, 0.1)
_WITHOUT_EFFECT = {MICRO_BATCH, SEED}
"""The micro-batch changes no loss, and a seed is noise."""


@dataclass(frozen=True)
class SettingAxis:
    """One swept setting as a coordinate."""

    path: str
    scale: Literal["log", "linear", "words"]
    low: float
    high: float
    exponent: float
    """Prior mean of the shift of the optimum, in coordinates per factor e of tokens; 0 for words."""
    exponent_sd: float
    """Prior standard deviation of the shift."""
    is_whole: bool = False
    words: tuple[str, ...] = ()

    def coordinate(self, value: Any) -> float:
        """The natural logarithm on a log axis, 0 to 4 over a linear range, the index of a word (-1: unknown)."""
        if self.scale == "words":
            return float(self.words.index(repr(value))) if repr(value) in self.words else -1.0
        if value is None or isinstance(value, str):
            return self.coordinate(self.low)  # The file's value of a setting whose condition does not hold.
        if self.scale == "log":
            # Zero has no logarithm; settings of a file may lie outside the space.
            return math.log(max(float(value), self.low * 1e-6))
        return _WIDTH * (float(value) - self.low) / (self.high - self.low)

    def value_at(self, coordinate: float) -> float | int:
        """The number at a coordinate, also outside the swept range; whole numbers are rounded, to 1 at least."""
        is_log = self.scale == "log"
        value = math.exp(coordinate) if is_log else self.low + coordinate / _WIDTH * (self.high - self.low)
        if not self.is_whole:
            return value
        return max(1, round(value)) if self.low > 0 else round(value)


def axes_of(space: SearchSpace) -> tuple[SettingAxis, ...]:
    """The settings that may change a loss, in the order of the space; a setting with one value is none of them."""
    swept = {path: values for path, values in space.items() if path not in _WITHOUT_EFFECT and _varies(values)}
    published = _PUBLISHED if BATCH in swept else {LEARNING_RATE: _AT_FIXED_BATCH}
    return tuple(_axis(path, values, published.get(path, _UNKNOWN)) for path, values in swept.items())


def coordinate_rows(axes: Sequence[SettingAxis], settings: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Coordinates [N, K] of N settings on K axes.

    Raises:
        KeyError: A setting has no value for an axis.
    """
    rows = [[axis.coordinate(one[axis.path]) for axis in axes] for one in settings]
    return np.array(rows, float).reshape(len(settings), len(axes))


def moved_settings(
    axes: Sequence[SettingAxis], settings: Mapping[str, Any], ratio: float, exponents: Mapping[str, float]
) -> dict[str, Any]:
    """Settings with learning rate and batch size moved along the path of the optimum to another length.

    Args:
        ratio: The other length over the length of the settings.
        exponents: Of settings on log axes, by path; others stay.
    """
    moved = dict(settings)
    for axis in axes:
        if axis.path in _PUBLISHED and axis.scale == "log":
            shift = exponents[axis.path] * math.log(ratio)
            moved[axis.path] = axis.value_at(axis.coordinate(settings[axis.path]) + shift)
    return moved


def _varies(distribution: Distribution) -> bool:
    return len(set(map(repr, distribution.extremes()))) > 1


def _axis(path: str, distribution: Distribution, published: tuple[float, float]) -> SettingAxis:
    ends = distribution.extremes()
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        return SettingAxis(path, "words", 0.0, 0.0, 0.0, 0.0, words=tuple(map(repr, ends)))
    low, high = float(min(ends)), float(max(ends))
    is_log = low > 0 and (distribution.kind.startswith("log") or distribution.kind == "choice" or path in _PUBLISHED)
    exponent, sd = published if is_log else _UNKNOWN
    is_whole = all(isinstance(end, int) for end in ends)
    return SettingAxis(path, "log" if is_log else "linear", low, high, exponent, sd, is_whole=is_whole)
