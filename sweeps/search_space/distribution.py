"""The search space: a distribution of values for each swept dotted path."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from data_pipeline.schema.settings import Settings, younger
from data_pipeline.schema.terminal_text import visible

Scalar = bool | int | float | str
"""A value of a setting."""
KINDS = ("choice", "uniform", "log_uniform", "int_uniform", "log_int_uniform")
"""Kinds of distributions."""


def _listed(values: Any) -> Any:
    """Each value of a condition as a list: `{model.feed_forward: moe}` means `{model.feed_forward: [moe]}`."""
    if not isinstance(values, dict):
        return values
    return {path: tuple(one) if isinstance(one, list | tuple) else (one,) for path, one in values.items()}


class Distribution(Settings):
    """Values that one setting may take: exactly one of the five kinds, and a condition if it needs one."""

    choice: tuple[Scalar, ...] | None = Field(default=None, min_length=1)
    """One of the values listed. Use it for words, powers of two and a few values. Example:
    `training.batch_size: {choice: [16, 32, 64]}`"""
    uniform: tuple[float, float] | None = None
    """A number between two, all equally likely. Use it for shares and rates. Example:
    `training.weight_decay: {uniform: [0.0, 0.2]}`"""
    log_uniform: tuple[float, float] | None = None
    """A number between two positive ones, evenly on a logarithmic scale. Use it where the order of magnitude is in
    question. Example: `training.learning_rate: {log_uniform: [1e-4, 1e-2]}`"""
    int_uniform: tuple[int, int] | None = None
    """A whole number between two, both included, all equally likely. Example: `model.layers: {int_uniform: [2, 8]}`"""
    log_int_uniform: tuple[int, int] | None = None
    """A whole number between two positive ones, both included, evenly on a logarithmic scale. Example:
    `training.batch_size: {log_int_uniform: [8, 256]}`"""
    when: Annotated[Annotated[dict[str, tuple[Scalar, ...]], BeforeValidator(_listed)] | None, younger(None)] = None
    """Condition: swept settings, each with the value or list of values at which this setting is searched. Elsewhere it
    has the value of the file. Example: `model.mixture.experts: {choice: [2, 4], when: {model.feed_forward: moe}}`"""

    @property
    def kind(self) -> str:
        """Name of the distribution's kind."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_valid_range(self) -> Self:
        given = {name: getattr(self, name) for name in KINDS if getattr(self, name) is not None}
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}")
        ((name, values),) = given.items()
        if name == "choice":
            if len(set(map(repr, values))) != len(values):
                raise ValueError("a value is listed twice; list each once")
            return self
        low, high = values
        if not low < high:
            raise ValueError(f"the lower end {low:g} is not below the upper end {high:g}; swap or widen them")
        if name.startswith("log") and low <= 0:
            raise ValueError(f"the lower end {low:g} is not positive; a logarithmic scale needs a positive one")
        return self

    def extremes(self) -> tuple[Any, ...]:
        """All choices, or both ends of the range; each must obey the rule of the setting."""
        return tuple(getattr(self, self.kind))

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these; False for values of another type, `auto` among numbers for one."""
        if self.kind == "choice":
            return value in self.extremes()
        low, high = self.extremes()
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and low <= value <= high and ("int" not in self.kind or value == int(value))

    def nearest(self, value: Any) -> Any:
        """The value of the distribution that is nearest to a number, by ratio where it is positive; words stay."""
        if self.holds(value) or isinstance(value, bool | str):
            return value
        if self.choice is None:
            low, high = self.extremes()
            whole = isinstance(low, int)
            return min(max(round(value) if whole else value, low), high)
        numbers = [one for one in self.choice if isinstance(one, int | float) and not isinstance(one, bool)]
        is_positive = value > 0 and all(one > 0 for one in numbers)
        return min(numbers, key=lambda one: abs(math.log(one / value)) if is_positive else abs(one - value))

    def count(self, grid_points: int | None) -> float:
        """Number of its values; infinite for a range of numbers with fractions.

        Args:
            grid_points: Values that a grid takes from a range. None: all of its values are possible.
        """
        if self.kind == "choice" or grid_points is not None:
            return len(self.grid(grid_points or 1))
        low, high = self.extremes()
        return high - low + 1 if "int" in self.kind else math.inf

    def grid(self, points: int) -> tuple[Any, ...]:
        """`points` values, evenly spaced on the scale of the range; all values of a choice."""
        if self.kind == "choice":
            return self.extremes()
        low, high = self.extremes()
        steps = [index / (points - 1) for index in range(points)] if points > 1 else [0.5]
        if self.kind.startswith("log"):
            values = [math.exp(math.log(low) + step * math.log(high / low)) for step in steps]
        else:
            values = [low + step * (high - low) for step in steps]
        if "int" in self.kind:
            return tuple(dict.fromkeys(round(value) for value in values))
        # exp(log(high)) may exceed high by rounding.
        return tuple(min(max(value, low), high) for value in values)

    def is_searched(self, values: Callable[[str], Any]) -> bool:
        """Whether the condition holds.

        Args:
            values: The value at the dotted path of another setting.
        """
        return all(values(path) in wanted for path, wanted in (self.when or {}).items())

    def __str__(self) -> str:
        values = self.extremes()
        where = " and ".join(f"{path} is {' or '.join(map(str, one))}" for path, one in (self.when or {}).items())
        where = f", where {where}" if where else ""
        if self.kind == "choice":
            return f"one of {', '.join(map(str, values))}{where}"
        return f"{values[0]:g} to {values[1]:g}, {self.kind.replace('_', '-')}{where}"


SearchSpace = Mapping[str, Distribution]
"""Dotted path of a setting (`training.learning_rate`) to its distribution."""


def format_setting(value: Any) -> str:
    """A setting's value as shown in tables and figures."""
    return f"{value:.3g}" if isinstance(value, float) else visible(str(value))


def short_name(path: str) -> str:
    """Column name of a setting in tables: the last part of its dotted path.

    Adapter settings get the prefix `lora_`, because `rank` already is the rank of a trial.
    """
    section, _, name = path.rpartition(".")
    return f"lora_{name}" if section.endswith(".lora") else name


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """`learning_rate 0.0005, batch_size 64`."""
    return ", ".join(f"{short_name(path)} {format_setting(value)}" for path, value in settings.items())
