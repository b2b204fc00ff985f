"""`budget.shorten_to`: fewer tokens per trial on a slow machine, so that the sweep keeps to its intended duration.

The speed of this machine is measured once and stored in `results/memory/`. The same file on the same machine is
therefore the same sweep, and the same command resumes it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from core.costs.training_flops import training_flops_a_token
from sweeps.lanes.lane_planning import plan_lanes
from sweeps.memory_knowledge.measurement_store import KeptMeasurements, OfShape
from sweeps.memory_knowledge.memory_observations import file_of_device
from sweeps.planning.auto_lanes import auto_lanes, expected_sweep_tokens, speed_shape
from sweeps.planning.speed_probe import measured_speed
from sweeps.search.initial_points import middle_run
from sweeps.settings.sweep_config import SweepConfig

SHARE_OF_TRAINING = 0.6
"""Share of a lane's time spent on training; evaluations, checkpoints and the start of lanes take the rest. Measured
with the quickstart on two CPU cores."""
_SLOW_FLOPS, _SLOW_S_A_TOKEN = 3e10, 2e-4
"""Low guess for busy CPUs without bf16: operations per second, and overhead per token in seconds."""
_FEWEST_TOKENS = 10_000
"""Minimum tokens of a trial, however slow the machine is."""


class MeasuredLength(OfShape):
    """Length of a sweep's trials on one kind of machine."""

    tokens_per_s: float
    """Speed of all lanes together."""
    was_measured: bool
    """False: the machine was too busy, so the rate is a low guess."""
    tokens_per_trial: int


def with_shortened_trials(
    sweep: SweepConfig, *, cluster: Callable[[], Mapping[str, Any]] | None, vocabulary_size: int, results_folder: Path
) -> tuple[SweepConfig, str]:
    """The sweep with as many tokens a trial as `budget.shorten_to` leaves on this machine, and a line that says so.

    Args:
        cluster: Returns CPUs and GPUs as `plan_lanes` takes them, for a measurement of some seconds if the rate is not
            stored yet; its nodes are assumed to equal this machine. None: do not measure; without a stored rate the
            tokens of the file stay.

    Returns:
        The sweep without `shorten_to`, and the line; the same sweep and an empty line if the file does not set it.
    """
    target_s = sweep.budget.shorten_to_s
    if target_s is None:
        return sweep, ""
    run, asked = middle_run(sweep), sweep.budget.trial_tokens
    kept = KeptMeasurements(
        file_of_device(results_folder, "trial-lengths"), MeasuredLength, what="how many tokens trials have"
    )
    shape = (
        f"{speed_shape(run, vocabulary_size)}, {torch.cuda.device_count()} GPUs, {sweep.budget!r}, "
        f"{sweep.early_stopping!r}, {sweep.resources!r}"
    )
    found = kept.read().get(shape)
    if found is None:
        if cluster is None:
            return sweep, f"at most {asked:,} tokens a trial; the sweep first measures the speed of this machine"
        measured = _tokens_per_s(sweep, cluster(), vocabulary_size=vocabulary_size, results_folder=results_folder)
        # A machine too busy for the measurement also trains slowly.
        rate = measured or 1 / (_SLOW_S_A_TOKEN + training_flops_a_token(run, vocabulary_size) / _SLOW_FLOPS)
        found = MeasuredLength(
            shape=shape,
            tokens_per_s=rate,
            was_measured=measured is not None,
            tokens_per_trial=_affordable(sweep, rate, target_s),
        )
        kept.add({shape: found})
    trains = "trains" if found.was_measured else "is too busy to be measured and is assumed to train"
    lowered = "as in the file" if found.tokens_per_trial == asked else f"lowered from {asked:,}"
    return _with_tokens(sweep, found.tokens_per_trial), (
        f"{found.tokens_per_trial:,} tokens a trial, {lowered}: this machine {trains} "
        f"{found.tokens_per_s:,.0f} tokens/s, and budget.shorten_to is {sweep.budget.shorten_to}"
    )


def _tokens_per_s(
    sweep: SweepConfig, cluster: Mapping[str, Any], *, vocabulary_size: int, results_folder: Path
) -> float | None:
    """Measured speed of all lanes of one node together; None if the measurement failed."""
    auto = auto_lanes(sweep, cluster=cluster, vocabulary_size=vocabulary_size, results_folder=results_folder)
    lanes = plan_lanes(sweep.resources, num_trials=sweep.num_trials, auto=auto, **cluster)
    found = measured_speed(sweep, lanes, vocabulary_size=vocabulary_size, results_folder=results_folder)
    return None if found is None else found.tokens_per_s


def _affordable(sweep: SweepConfig, rate: float, target_s: float) -> int:
    """Tokens per trial, at most those of the file, rounded to two digits: further digits are measurement noise."""
    asked = sweep.budget.trial_tokens
    tokens = asked * min(1.0, target_s * rate * SHARE_OF_TRAINING / expected_sweep_tokens(sweep))
    return asked if tokens >= asked else min(asked, max(_FEWEST_TOKENS, int(float(f"{tokens:.1e}"))))


def _with_tokens(sweep: SweepConfig, tokens: int) -> SweepConfig:
    budget = sweep.budget.model_copy(update={"tokens_per_trial": tokens, "shorten_to": None})
    return sweep.model_copy(update={"budget": budget})
