"""Distributions of Ray Tune and Optuna as those of a sweep file.

They are objects here and no text, so their meaning is certain: the upper end of `tune.randint` is excluded, and that of
Optuna's distributions included.
"""

from collections.abc import Mapping
from typing import Any

from data_pipeline.schema.user_errors import InputFault

_MOST_STEPS = 200
"""Values of a range in steps that become a list."""


def in_our_terms(path: str, given: Any) -> Any:
    """A distribution as a sweep file has it; a plain value passes unchanged.

    Args:
        path: Dotted path of the setting, for the message.

    Raises:
        InputFault: The distribution has no equal here.
    """
    origin = type(given).__module__
    if isinstance(given, Mapping) and [*given] == ["grid_search"]:
        return {"choice": list(given["grid_search"])}
    if origin.startswith("ray.tune"):
        return _of_tune(path, given)
    if origin.startswith("optuna.distributions"):
        return _of_optuna(path, given)
    return given


def is_grid(given: Any) -> bool:
    """Whether a value is `tune.grid_search`, which asks for all of its values."""
    return isinstance(given, Mapping) and [*given] == ["grid_search"]


def _of_tune(path: str, given: Any) -> dict[str, Any]:
    from ray.tune.search import sample

    if isinstance(given, sample.Categorical):
        return {"choice": list(given.categories)}
    is_number = isinstance(given, sample.Float | sample.Integer)
    sampler = given.get_sampler() if is_number else None
    step = None
    if isinstance(sampler, sample.Quantized):
        step, sampler = sampler.q, sampler.sampler
    is_log = isinstance(sampler, sample.LogUniform)
    if sampler is None or not (is_log or isinstance(sampler, sample.Uniform)):
        name = "tune.sample_from" if isinstance(given, sample.Function) else f"tune's {type(sampler or given).__name__}"
        raise InputFault(
            f"search.{path}: {name} has no equal in a search space; use tune.uniform, tune.loguniform, tune.randint, "
            "tune.lograndint, tune.quniform, tune.choice or tune.grid_search"
        )
    is_whole = isinstance(given, sample.Integer)
    low, high = given.lower, given.upper
    # Tune rounds a quantized whole number up to its upper end, and excludes the end of any other.
    high = high - 1 if is_whole and step is None else high
    return _range(path, low, high, is_log=is_log, is_whole=is_whole, step=None if step == 1 and is_whole else step)


def _of_optuna(path: str, given: Any) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(given, CategoricalDistribution):
        return {"choice": list(given.choices)}
    assert isinstance(given, FloatDistribution | IntDistribution), "Optuna has three distributions"
    is_whole = isinstance(given, IntDistribution)
    step = None if given.step is None or (is_whole and given.step == 1) else given.step
    return _range(path, given.low, given.high, is_log=given.log, is_whole=is_whole, step=step)


def _range(path: str, low: float, high: float, *, is_log: bool, is_whole: bool, step: float | None) -> dict[str, Any]:
    if step is None:
        return {f"{'log_' if is_log else ''}{'int_' if is_whole else ''}uniform": [low, high]}
    count = int((high - low) / step * (1 + 1e-9)) + 1
    if is_log or count > _MOST_STEPS:
        reason = "steps on a logarithmic scale" if is_log else f"{count:,} steps of {step:g}"
        raise InputFault(f"search.{path}: {reason} have no equal in a search space; leave the step out, or list values")
    values = [low + index * step for index in range(count)]
    return {"choice": [round(value) if is_whole else float(f"{value:.10g}") for value in values]}
