"""Distributions on dotted paths: what is swept, and over which values."""

import math
from collections.abc import Mapping
from typing import Any, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from pydantic import Field, model_validator

from data_pipeline.schema.settings import Settings


class Distribution(Settings):
    """Values that one setting may take: exactly one of the five."""

    choice: tuple[bool | int | float | str, ...] | None = Field(default=None, min_length=1)
    """One of the values listed."""
    uniform: tuple[float, float] | None = None
    """Between two numbers."""
    log_uniform: tuple[float, float] | None = None
    """Between two positive numbers, evenly on a logarithmic scale."""
    int_uniform: tuple[int, int] | None = None
    """A whole number between two, both included."""
    log_int_uniform: tuple[int, int] | None = None
    """A whole number between two positive ones, both included, evenly on a logarithmic scale."""

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_valid_range(self) -> Self:
        given = {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None}
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        ((name, values),) = given.items()
        if name == "choice":
            if len(set(map(repr, values))) != len(values):
                raise ValueError("a value is listed twice; list each once")
            return self
        low, high = values
        if not low < high:
            raise ValueError(f"the lower end {low:g} is not below the upper end {high:g}; swap or widen them")
        if name.startswith("log") and low <= 0:
            raise ValueError(f"the lower end {low:g} is not positive, which a logarithmic scale needs")
        return self

    def extremes(self) -> tuple[Any, ...]:
        """Values that must all obey the setting's rule: every choice, or both ends of the range."""
        return tuple(getattr(self, self.kind))

    def to_optuna(self) -> BaseDistribution:
        """The same distribution in Optuna's terms."""
        match self.kind:
            case "choice":
                return CategoricalDistribution(self.extremes())
            case "uniform" | "log_uniform":
                low, high = self.extremes()
                return FloatDistribution(low, high, log=self.kind == "log_uniform")
            case _:
                low, high = self.extremes()
                return IntDistribution(low, high, log=self.kind == "log_int_uniform")

    def grid(self, points: int) -> tuple[Any, ...]:
        """`points` values that cover the range evenly on its own scale; every value of a choice."""
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
        # exp(log(high)) may be a hair above high, where the range ends.
        return tuple(min(max(value, low), high) for value in values)

    def __str__(self) -> str:
        values = self.extremes()
        if self.kind == "choice":
            return f"one of {', '.join(map(str, values))}"
        return f"{values[0]:g} to {values[1]:g}, {self.kind.replace('_', '-')}"


SearchSpace = Mapping[str, Distribution]
"""Dotted path of a setting (`training.learning_rate`) to its distribution."""


def format_setting(value: Any) -> str:
    """A setting's value as every table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short_name(path: str) -> str:
    """Last part of a dotted path: what a table's column is called. Of adapters with a word before it, for a rank is
    something else in a table of trials."""
    section, _, name = path.rpartition(".")
    return f"lora_{name}" if section.endswith(".lora") else name


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """`learning_rate 0.0005, batch_size 64`."""
    return ", ".join(f"{short_name(path)} {format_setting(value)}" for path, value in settings.items())


def holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value lies inside a distribution."""
    try:
        # Optuna's own public check: a trial whose value lies outside its distribution is refused.
        create_trial(state=TrialState.FAIL, params={"": value}, distributions={"": distribution})
    except (TypeError, ValueError):
        return False  # Outside, or of another type than the space's values, `auto` among numbers for one.
    return True
