"""`budget.shorten_to`: fewer tokens a trial on a slow machine, so that a sweep takes no longer than it is meant to.

The rate of this machine is measured once and kept in `results/memory/`: the same file on the same machine is the same
sweep, so the same command resumes it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from core.costs.lane_benchmark import Way, measure_side_by_side
from core.costs.training_flops import training_flops_a_token
from core.settings.run_config import RunConfig
from sweeps.lanes.lane_planning import plan_lanes
from sweeps.memory_knowledge.measurement_store import KeptMeasurements, OfShape
from sweeps.memory_knowledge.memory_observations import file_of_device
from sweeps.planning.auto_lanes import auto_lanes, expected_sweep_tokens, rows_of_measurement, speed_shape
from sweeps.search.initial_points import middle_run
from sweeps.settings.sweep_config import SweepConfig

_SHARE_OF_TRAINING = 0.6
"""Of a sweep's seconds on lanes; evaluations, checkpoints and the start of lanes take the rest (the quickstart on two
processor cores)."""
_SLOW_FLOPS, _SLOW_S_A_TOKEN = 3e10, 2e-4
"""Operations a second of processors without bf16 that other work keeps busy, and what a token costs besides: a low
guess."""
_TIMEOUT_S = 90.0
"""Of the measurement."""
_FEWEST_TOKENS = 10_000
"""A trial keeps at least this many, however slow the machine is."""


class MeasuredLength(OfShape):
    """How long the trials of one sweep are on one kind of machine."""

    tokens_per_s: float
    """Of all lanes together."""
    was_measured: bool
    """False: the machine was too busy, and the rate is a low guess."""
    tokens_per_trial: int


def with_shortened_trials(
    sweep: SweepConfig, *, cluster: Callable[[], Mapping[str, Any]] | None, vocabulary_size: int, results_folder: Path
) -> tuple[SweepConfig, str]:
    """The sweep with as many tokens a trial as `budget.shorten_to` leaves on this machine, and a line that says so.

    Args:
        cluster: Gives processors and GPUs as `plan_lanes` takes them, for a measurement of some seconds where the rate
            is not known yet; the nodes are taken to be like this machine. None: a rate that is not known is not
            measured, and the tokens stay as the file has them.

    Returns:
        The sweep without `shorten_to`; the same sweep and no words where the file does not ask for it.
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
    if found is None and cluster is None:
        return sweep, f"at most {asked:,} tokens a trial; the sweep first measures how many this machine trains"
    if found is None:
        assert cluster is not None
        measured = _tokens_per_s(sweep, run, cluster(), vocabulary_size=vocabulary_size, results_folder=results_folder)
        # A machine too busy to be measured trains slowly, too.
        rate = measured or 1 / (_SLOW_S_A_TOKEN + training_flops_a_token(run, vocabulary_size) / _SLOW_FLOPS)
        found = MeasuredLength(
            shape=shape,
            tokens_per_s=rate,
            was_measured=measured is not None,
            tokens_per_trial=_affordable(sweep, rate, target_s),
        )
        kept.add({shape: found})
    trains = "trains" if found.was_measured else "is too busy to be measured, and is taken to train"
    lowered = "as the file says" if found.tokens_per_trial == asked else f"lowered from {asked:,}"
    return _with_tokens(sweep, found.tokens_per_trial), (
        f"{found.tokens_per_trial:,} tokens a trial, {lowered}: this machine {trains} "
        f"{found.tokens_per_s:,.0f} tokens/s, and budget.shorten_to is {sweep.budget.shorten_to}"
    )


def _tokens_per_s(
    sweep: SweepConfig, run: RunConfig, cluster: Mapping[str, Any], *, vocabulary_size: int, results_folder: Path
) -> float | None:
    """Of all lanes of one node together; None where they cannot be measured."""
    auto = auto_lanes(sweep, cluster=cluster, vocabulary_size=vocabulary_size, results_folder=results_folder)
    lanes = plan_lanes(sweep.resources, num_trials=sweep.budget.trials, auto=auto, **cluster)
    (pace,) = measure_side_by_side(
        run,
        [Way(lanes.count * lanes.workers, lanes.threads_per_worker)],
        vocabulary_size=vocabulary_size,
        rows=rows_of_measurement(run, num_workers=lanes.workers),
        device="cuda:0" if lanes.use_gpu else "cpu",
        share_device=lanes.gpus_per_worker < 1,
        timeout_s=_TIMEOUT_S,
    )
    return pace.tokens_per_s


def _affordable(sweep: SweepConfig, rate: float, target_s: float) -> int:
    """Tokens a trial, at most those of the file, in two digits: the rest is noise of the measurement."""
    asked = sweep.budget.trial_tokens
    tokens = asked * min(1.0, target_s * rate * _SHARE_OF_TRAINING / expected_sweep_tokens(sweep))
    return asked if tokens >= asked else min(asked, max(_FEWEST_TOKENS, int(float(f"{tokens:.1e}"))))


def _with_tokens(sweep: SweepConfig, tokens: int) -> SweepConfig:
    budget = sweep.budget.model_copy(update={"tokens_per_trial": tokens, "shorten_to": None})
    return sweep.model_copy(update={"budget": budget})
