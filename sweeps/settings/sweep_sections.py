"""Sections of a sweep file: searcher, early stopping, budget, repeats, resources, tracking, start."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    field_validator,
    model_validator,
)

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


_Percentage = Annotated[str, AfterValidator(_percentage), Field(examples=["50%"])]


def _fraction_as_percentage(value: Any) -> Any:
    return f"{100 * value:.6g}%" if isinstance(value, float) and 0 < value < 1 else value


class SearcherConfig(Settings):
    """Who proposes settings."""

    method: Literal["tpe", "gp", "random", "grid"] = "tpe"
    """Method that proposes settings. tpe: tree-structured Parzen estimator (Optuna). gp: Gaussian process (Optuna); it
    needs fewer trials, and up to a second for each proposal. random: independent draws. grid: every combination, in
    order."""
    start: Literal["informed", "none"] = "informed"
    """First trials after those of start_with. informed: a few points from published rules for learning rate, batch
    size, masking rate and beta2; pretune plan lists them. none: the method proposes all points."""
    seed: NonNegativeInt = 0
    """Seed of the proposals. It changes which settings are tried, not how a trial trains: that is training.seed."""
    grid_points: Count = 5
    """Values that a grid takes from each range; a choice gives all of its values. Other methods do not use it."""
    extend: bool = False
    """true: where the best trial is on an edge of the search space at the end, the space is widened there and the
    search continues with a quarter more trials; twice at most."""


METHODS_WITH_BRANCHES = ("full-length", "trunk-and-branch")
"""Methods of early stopping whose trials pause at rungs, and whose losses there are those of annealed branches."""


class EarlyStoppingConfig(Settings):
    """Which trials end before their tokens are used up."""

    method: Literal["full-length", "trunk-and-branch", "asha", "median", "none"] = "trunk-and-branch"
    """Rule of early stopping. A file that names none gets full-length if learning rate or batch size is swept, the
    trials are 10 or more, and two probe lengths are long enough for the smallest batch; else trunk-and-branch.
    full-length: short probes at several lengths show how the best settings move with the
    length of training; the settings predicted to be best at the full length are trained in full. It needs
    training.schedule: wsd, and chooses the settings itself: searcher.method only says whether they lie on a grid.
    trunk-and-branch: a trial pauses at each rung, and a short branch cools down from there
    (training.cooldown of the rung's tokens), so that its loss is that of a training of this length. The best trials are
    promoted and continue from before the branch: asynchronous successive halving. It needs training.schedule: wsd; with
    another schedule the default is asha. asha: trials stop at rungs by their losses at the learning rate of that moment
    (arXiv:1810.05934). median: a trial stops where its best loss is above the median of the others' average losses up
    to there. none: no trial stops early."""
    probe_lengths: Annotated[tuple[Annotated[Share, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (
        1 / 16,
        1 / 8,
        1 / 4,
    )
    """full-length only: lengths of probes, as shares of the tokens of a trial, ascending. Each gets the same part of
    budget.search_share. A probe is as long as the branch of 50 steps needs that anneals it, so large batches leave the
    short ones out."""
    confirm: Count | Literal["none"] = 2
    """full-length only: settings that are trained in full, at most: the predicted best, then rivals as long as one may
    be better. none: no training in full; the sweep ends with the predicted best settings and no model."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """Ratio of two rungs' tokens; the best 1/factor of the trials are promoted at each rung. 3 and 4 are usual
    (arXiv:1810.05934). Not used by median."""
    first_rung: Annotated[Share, Field(gt=0)] = 0.1
    """Share of the tokens before which there is no rung. median: a rung at every multiple of this share. Early losses
    say little of large batches, which have taken only a few steps by then."""
    run_to_end: NonNegativeInt | Literal["auto"] = "auto"
    """Trials that are trained to the end whatever their losses at rungs; they are drawn at random beforehand. They show
    without bias how well losses at rungs predict final losses. auto: one in ten."""

    @property
    def num_in_full(self) -> int:
        """`confirm` as a number."""
        return 0 if self.confirm == "none" else self.confirm

    @property
    def has_branches(self) -> bool:
        """Whether trials pause at rungs, where a branch cools down."""
        return self.method in METHODS_WITH_BRANCHES

    @model_validator(mode="after")
    def _lengths_ascend(self) -> Self:
        if list(self.probe_lengths) != sorted(set(self.probe_lengths)):
            raise ValueError("probe_lengths must ascend; list each length once, the shortest first")
        return self


_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(value: Any) -> Any:
    text = f"{value:g}s" if isinstance(value, int | float) and not isinstance(value, bool) else value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(s|min|h|d)\s*", text) if isinstance(text, str) else None
    if match is None or not 0 < float(match[1]) < math.inf:
        raise ValueError("is not a duration; write a positive number with a unit of s, min, h or d, e.g. 90min")
    return f"{match[1]}{match[2]}"


def _seconds(duration: str) -> float:
    number, unit = re.findall(r"[0-9.]+|[a-z]+", duration)
    return float(number) * _SECONDS[unit]


class BudgetConfig(Settings):
    """How much is spent. The sweep ends when any limit that is given is reached."""

    trials: Count = 20
    """Trials of the search. Trials that are refused before launch and repeats do not count. Ten for each swept setting
    is a rule of thumb. Where another limit is given and this one is not: 1,000."""
    tokens_per_trial: Count | None = None
    """Tokens of training that a trial gets unless it is stopped, padding not counted; or give epochs_per_trial. They
    may be written as 20M. Twenty for each parameter are compute-optimal (arXiv:2203.15556); fewer suffice to compare
    settings."""
    epochs_per_trial: PositiveFloat | None = None
    """Passes over the training rows that a trial gets, instead of tokens_per_trial. Up to four are nearly as good as
    new text (arXiv:2305.16264)."""
    tokens: Count | None = None
    """Tokens of training of all trials together, as 1B. No trial starts that could exceed them. null: no limit."""
    flops: Annotated[float, Field(gt=0)] | None = None
    """Floating-point operations of training of all trials together, as the models need them. No trial starts that could
    exceed them. null: no limit."""
    wall_clock: Annotated[str, BeforeValidator(_duration), Field(examples=["90min"])] | None = None
    """Time that the sweep may take from its first trial, as 90min, 2h or 1d (units s, min, h, d). Running trials are
    then stopped at their next report, and no trial starts with less time left than the fastest one took. null: no
    limit."""

    search_share: Annotated[Share, Field(gt=0)] = 0.1
    """early_stopping.method: full-length only: tokens of all probes, as a share of trials x tokens of a trial. With
    budget.tokens the probes get all that trainings in full leave."""

    patience: Count | None = None
    """Trials in a row without an expected improvement above the noise, after which the search ends. The improvement is
    that of a Gaussian process over the search space; the noise is the standard deviation between seeds, or else that
    which settings do not explain. null: the search uses all of its trials, for with a few of them this is a guess."""

    shorten_to: Annotated[str, BeforeValidator(_duration), Field(examples=["3min"])] | None = None
    """Time that all trials may take at this machine's measured rate, as 3min (units s, min, h, d); trials get fewer
    than tokens_per_trial tokens where they would take longer. The first run measures the rate, and results/memory/
    keeps it. null: tokens_per_trial as given."""

    @property
    def trial_tokens(self) -> int:
        """`tokens_per_trial` of a resolved sweep, in which it is always known (sweeps/planning/resolved_sweep.py)."""
        assert self.tokens_per_trial is not None, "the tokens of epochs or stages are not counted yet"
        return self.tokens_per_trial

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

    @model_validator(mode="after")
    def _holds_one_trial(self) -> Self:
        if self.tokens_per_trial is None:
            return self
        if self.epochs_per_trial is not None:
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
    """Most repeats after the search; they end earlier when the best settings no longer tie with the other leaders.
    auto: one for five trials of the budget, at most six, and none for a budget of fewer than ten trials; two at least
    with early_stopping.method: full-length, for the winner and its rival."""
    leaders: Count = 3
    """Settings of the lowest losses that are repeated with other seeds."""

    def count(self, num_trials: int) -> int:
        """Maximum number of repeats after a search of `num_trials` trials."""
        if self.trials != "auto":
            return self.trials
        return min(6, num_trials // 5) if num_trials >= 10 else 0


class ResourcesConfig(Settings):
    """What a trial runs on."""

    workers_per_trial: Count = 1
    """Worker processes that share each batch of one trial (data parallel); at most the batch size."""
    concurrent_trials: Count | Literal["auto"] = "auto"
    """Trials that train at the same time, each on a lane of its own. auto: as many as train the most tokens a second
    together and fit in memory, at most budget.trials; measured once for a model's shape on a kind of machine and kept
    in results/memory/."""
    worker_deadline_s: Annotated[float, Field(ge=5)] = 600.0
    """Seconds that the other workers of a trial wait for one of them before it counts as lost. The trial then resumes
    from its last checkpoint with new workers."""
    checkpoint_every_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between two checkpoints of a running trial: the most training that a lost worker, node or driver
    costs."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device that trials train on. auto: GPUs if the cluster has any, else CPUs."""
    memory: Annotated[
        NumBytes | Literal["auto"] | _Percentage,
        BeforeValidator(_fraction_as_percentage),
    ] = "auto"
    """Memory limit of one worker, in bytes, for weights, gradients, optimizer state and activations. auto: its share of
    the GPU, or of the host. A percentage, or a fraction below 1, is a part of that."""
    memory_limit_by: LimitBy = "counting"
    """Way in which the memory limit is enforced on CPUs. counting: the tensors of training are counted. rlimit: the
    kernel gives the process no more private memory than the limit, besides that which it has as the trial begins.
    rlimit counts everything, and a library that cannot bear a refusal ends the process."""
    price_per_hour: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Price of an hour of the whole machine or cluster, in any currency, above 0: pretune plan multiplies it by the
    expected time. null: the plan gives no price. It changes no training."""

    def memory_bytes(self, whole_bytes: int) -> int:
        """Bytes of `memory` for a worker that could have this many."""
        if isinstance(self.memory, int):
            return self.memory
        return whole_bytes if self.memory == "auto" else round(whole_bytes * float(self.memory.rstrip("% ")) / 100)

    def uses_gpus(self, num_gpus: int) -> bool:
        """Whether trials train on GPUs, in a cluster with this many."""
        return self.device == "gpu" or (self.device == "auto" and num_gpus > 0)


Mirror = Literal["tensorboard", "wandb", "swanlab"]


class TrackingConfig(Settings):
    """Where runs are recorded besides MLflow. It changes no training."""

    mirror: Annotated[tuple[Mirror, ...], Field(json_schema_extra={"uniqueItems": True})] = ()
    """Trackers that get the same runs as MLflow: a list of tensorboard, wandb and swanlab. tensorboard is always on,
    with event files in the folder of each trial. wandb and swanlab need their package, and take their mode and login
    from the environment (WANDB_MODE=offline, SWANLAB_MODE=offline). Empty: MLflow and TensorBoard."""

    @field_validator("mirror")
    @classmethod
    def _each_once(cls, value: tuple[Mirror, ...]) -> tuple[Mirror, ...]:
        twice = sorted({one for one in value if value.count(one) > 1})
        if twice:
            raise ValueError(f"names {', '.join(twice)} twice; name each tracker once")
        return value


class StartConfig(Settings):
    """What an earlier sweep or training gives to this one: names of files (`name:`), of which the newest finished
    results are taken, or results folders."""

    settings_of: str | None = None
    """Sweep whose winning settings are trained here, by name or results folder; for pretune train. They replace those
    of the file, and --set replaces them."""
    weights_of: str | None = None
    """Sweep or training whose model this one begins with, by name or results folder; its shape and tokenizer come with
    the weights."""
    trunk_of: str | None = None
    """Folder of a trial from whose checkpoint before the cooldown the training continues. pretune train fills it in;
    leave it out of your own files."""
    notes: tuple[str, ...] = ()
    """Sources of settings and weights, in words. pretune fills them in; leave them out of your own files."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set & {name for name, value in self if value is not None}:
            raise ValueError("give settings_of, weights_of or both, or remove start")
        return self
