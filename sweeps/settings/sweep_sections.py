"""Sections of a sweep file: searcher, early stopping, budget, repeats, resources, start."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveFloat, model_validator

from core.memory.memory_reports import LimitBy
from data_pipeline.schema.settings import Count, NumBytes, Settings, Share


def file_name(name: str) -> str:
    """The name, if a folder can have it.

    Raises:
        ValueError: It contains other characters than letters, digits, dot, dash and underscore.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError("may contain letters, digits, dot, dash and underscore, and starts with a letter or digit")
    return name


def _percentage(text: str) -> str:
    if not re.fullmatch(r"(100|[0-9]{1,2}(\.[0-9]+)?)\s*%", text):
        raise ValueError("is not a percentage; write e.g. 50%")
    return text


_Percentage = Annotated[str, AfterValidator(_percentage)]


def _fraction_as_percentage(value: Any) -> Any:
    return f"{100 * value:.6g}%" if isinstance(value, float) and 0 < value < 1 else value


class SearcherConfig(Settings):
    """Who proposes settings."""

    method: Literal["tpe", "gp", "random", "grid"] = "tpe"
    """tpe: tree-structured Parzen estimator (Optuna). gp: Gaussian process (Optuna); it needs fewer trials, and up to a
    second to propose one. grid: every combination, in order."""
    start: Literal["informed", "none"] = "informed"
    """informed: the first trials after start_with are points from knowledge, as `plan` says them. none: the method's
    own."""
    seed: NonNegativeInt = 0
    grid_points: Count = 5
    """grid: values taken from a continuous range."""
    extend: bool = False
    """Where the best trial lies on the edge of the space when the search has ended: widen the space there, and go on
    with a quarter of the trials more; twice at most."""


class EarlyStoppingConfig(Settings):
    """Which trials end before their tokens are used up."""

    method: Literal["trunk-and-branch", "asha", "median", "none"] = "trunk-and-branch"
    """trunk-and-branch: at a rung a trial pauses, a short branch that cools down from there (training.cooldown of the
    rung's tokens) gives the loss it would have if it ended there, and the best go on from before the branch:
    asynchronous successive halving with promotions. Needs training.schedule: wsd; with another one the default is asha.
    asha: stops at rungs (arXiv:1810.05934), by losses at the learning rate of that moment.
    median: stops what is worse than the others were on average by then."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """At each rung the best 1/factor go on; rungs are this factor apart."""
    first_rung: Annotated[Share, Field(gt=0)] = 0.1
    """No rung comes before this share of the tokens. median: a rung at every such share."""
    run_to_end: NonNegativeInt | Literal["auto"] = "auto"
    """Trials, drawn at random beforehand, that are trained to the end whatever their losses at rungs: they show without
    bias what those say of final losses. auto: one in ten."""


_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(value: Any) -> Any:
    text = f"{value:g}s" if isinstance(value, int | float) and not isinstance(value, bool) else value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(s|min|h|d)\s*", text) if isinstance(text, str) else None
    if match is None or float(match[1]) <= 0:
        raise ValueError("is not a duration; write a positive number with a unit of s, min, h or d, e.g. 90min")
    return f"{match[1]}{match[2]}"


def _seconds(duration: str) -> float:
    number, unit = re.findall(r"[0-9.]+|[a-z]+", duration)
    return float(number) * _SECONDS[unit]


_NOT_COUNTED_YET = 1
"""Stands for the tokens of some epochs, until the corpus is prepared (sweeps/planning/epochs.py)."""


class BudgetConfig(Settings):
    """How much is spent. The sweep ends when any limit that is given is reached."""

    trials: Count = 20
    """Trials of the search. What is refused before launch does not count, and neither do repeats. Where another limit
    is given and this is not: 1,000."""
    tokens_per_trial: Count
    """Tokens of training that a trial gets unless it is stopped; padding does not count."""
    epochs_per_trial: PositiveFloat | None = None
    """The same in passes over the training rows, instead: what that is in tokens, the prepared corpus says."""
    tokens: Count | None = None
    """Tokens of training of all trials together. No trial starts that could exceed them."""
    flops: Annotated[float, Field(gt=0)] | None = None
    """Floating-point operations of training of all trials together, as the models need them. No trial starts that could
    exceed them."""
    wall_clock: Annotated[str, BeforeValidator(_duration)] | None = None
    """How long the sweep may take from the first trial on, as 90min, 2h or 1d. Trials in flight are then stopped at
    their next report, and none starts for which less time is left than the fastest trial took."""

    patience: Count | None = None
    """The search ends when so many trials in a row leave an expected improvement below the noise: that of a Gaussian
    process over the space, against the standard deviation between seeds, or of what settings do not explain. None: it
    does not, for with the few trials of a usual sweep that is a guess."""

    shorten_to: Annotated[str, BeforeValidator(_duration)] | None = None
    """Trials get fewer tokens than tokens_per_trial where this machine, at its measured rate, would train all of them
    for longer than this, as 3min. The first run measures the rate and results/memory/ keeps it. None: never fewer."""

    @property
    def wall_clock_s(self) -> float | None:
        """`wall_clock` in seconds."""
        return None if self.wall_clock is None else _seconds(self.wall_clock)

    @property
    def shorten_to_s(self) -> float | None:
        """`shorten_to` in seconds."""
        return None if self.shorten_to is None else _seconds(self.shorten_to)

    @model_validator(mode="before")
    @classmethod
    def _another_limit_takes_the_place_of_trials(cls, value: Any) -> Any:
        others = ("tokens", "flops", "wall_clock")
        if isinstance(value, dict) and "trials" not in value and any(value.get(name) for name in others):
            return {**value, "trials": 1000}
        return value

    @model_validator(mode="before")
    @classmethod
    def _epochs_take_the_place_of_tokens(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("epochs_per_trial") and "tokens_per_trial" not in value:
            return {**value, "tokens_per_trial": _NOT_COUNTED_YET}
        return value

    @model_validator(mode="after")
    def _holds_one_trial(self) -> Self:
        if self.epochs_per_trial is not None and self.tokens_per_trial != _NOT_COUNTED_YET:
            raise ValueError("give tokens_per_trial or epochs_per_trial, not both")
        if self.tokens is not None and self.tokens < self.tokens_per_trial:
            raise ValueError(
                f"tokens={self.tokens} is below tokens_per_trial={self.tokens_per_trial}: no trial fits; raise tokens, "
                "or lower tokens_per_trial"
            )
        return self


class RepeatsConfig(Settings):
    """Leading settings are trained again with other seeds, once the search has ended: only so is it known what luck
    does to a loss, and which settings are tied."""

    trials: NonNegativeInt | Literal["auto"] = "auto"
    """At most so many, until the best can be told from the other leaders. auto: one for five trials of the budget, six
    at most, and none for a budget of fewer than ten."""
    leaders: Count = 3
    """Settings that are repeated."""

    def count(self, num_trials: int) -> int:
        """Maximum number of repeats after a search of `num_trials` trials."""
        if self.trials != "auto":
            return self.trials
        return min(6, num_trials // 5) if num_trials >= 10 else 0


class ResourcesConfig(Settings):
    """What a trial runs on."""

    workers_per_trial: Count = 1
    """Processes that share one trial's batch (data parallel)."""
    concurrent_trials: Count | Literal["auto"] = "auto"
    """Lanes. auto: as many as train the most tokens a second together, measured once for a model's shape on a kind of
    machine (`results/memory/`), in memory that holds them all, and no more than trials."""
    worker_deadline_s: Annotated[float, Field(ge=5)] = 600.0
    """A worker that lets the others of its trial wait for so many seconds counts as lost; the trial then goes on from
    its last checkpoint with new workers."""
    checkpoint_every_s: Annotated[float, Field(gt=0)] = 60.0
    """What a lost worker, node or driver costs at most: a running trial is saved so often."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs if the cluster has any."""
    memory: Annotated[
        NumBytes | Literal["auto"] | Annotated[str, AfterValidator(_percentage)],
        BeforeValidator(_fraction_as_percentage),
    ] = "auto"
    """Memory of one worker for weights, gradients, optimizer state and activations. auto: the whole device, or the
    worker's share of the host. A percentage, or a fraction below 1: of that."""
    memory_limit_by: LimitBy = "counting"
    """On CPUs, how that is enforced. counting: the tensors of training are counted. rlimit: the kernel gives the
    process no more private memory than that on top of what it has as the trial begins; that counts everything, and
    ends a process whose libraries cannot do with a refusal."""


class StartConfig(Settings):
    """What an earlier sweep or training gives to this one: names of files (`name:`), of which the newest finished
    results are taken, or results folders."""

    settings_of: str | None = None
    """A sweep: the settings that won there are the ones of this file."""
    weights_of: str | None = None
    """A sweep or training: its model is what this one begins with (`training.initial_weights`)."""
    trunk_of: str | None = None
    """A trial's folder, filled in by `pretune train`: the training goes on from that trial's checkpoint before its
    cooldown, which has the same settings."""
    notes: tuple[str, ...] = ()
    """Where settings and weights come from, in words; filled in."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set & {name for name, value in self if value is not None}:
            raise ValueError("give settings_of, weights_of or both, or remove start")
        return self


class EvaluationConfig(Settings):
    """When the holdout is evaluated, besides every rung and the end."""

    points: Count = 8
    """Evaluations spread evenly over the tokens of a trial."""
