"""Optuna's Gaussian process, fitted to all outcomes.

`optuna.samplers.GPSampler` (5.0) fits its models to completed trials only. It would ignore infeasible and stopped
trials and propose their settings again. So each proposal comes from a new study with all known trials as complete:

* infeasible: a broken constraint, which has its own model, and the mean loss, which carries no information;
* stopped: the loss at the last rung, minus the median fall of completed trials from there to their end;
* diverged: a bad loss, capped at the worst loss plus the spread of losses, so that differences between good trials stay
  visible to the model.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

_REFUSED_IN_A_ROW = 8
"""Refused proposals in a row after which one is drawn at random: each proposal costs a fit of two models."""


class GaussianProcessSampler(optuna.samplers.BaseSampler):
    """Proposes the settings with the largest expected improvement among those expected to fit in memory.

    Args:
        space: Dotted path to its distribution.
        num_random: Trials with a loss before the model proposes.
        worst_loss: Loss that stands for a diverged trial.
    """

    def __init__(self, space: dict[str, BaseDistribution], *, seed: int, num_random: int, worst_loss: float) -> None:
        self._space = {path: distribution for path, distribution in space.items() if not distribution.single()}
        self._num_random, self._worst_loss = num_random, worst_loss
        self._rng = np.random.default_rng(seed)
        self._random = optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, the same for every trial."""
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Settings to try next; empty, which means at random, before the model proposes."""
        told = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        ended = as_completed(told, worst_loss=self._worst_loss)
        num_losses = sum(one.state is TrialState.COMPLETE for one in told)
        if not search_space or num_losses < self._num_random or _num_refused_last(told) >= _REFUSED_IN_A_ROW:
            return {}
        # A new model each time: a proposal depends only on the seed and on the told trials.
        inner = optuna.samplers.GPSampler(
            seed=int(self._rng.integers(2**31)), n_startup_trials=1, warn_independent_sampling=False
        )
        model = optuna.create_study(direction="minimize", sampler=inner)
        running = [one for one in told if one.state is TrialState.RUNNING and one.params.keys() == search_space.keys()]
        model.add_trials([*ended, *(_copy(one, state=TrialState.RUNNING) for one in running)])
        return model.ask(search_space).params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One setting at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def as_completed(told: Sequence[FrozenTrial], *, worst_loss: float) -> list[FrozenTrial]:
    """All known trials as completed ones, each with a loss and the memory constraint."""
    finished = [one for one in told if one.state is TrialState.COMPLETE and one.value is not None]
    losses = [one.value for one in finished if one.value is not None and one.value < worst_loss]
    if not losses:
        return []
    cap = max(losses) + max(max(losses) - min(losses), 1e-3 * abs(max(losses)))
    ended = [_copy(one, value=min(one.value, cap)) for one in finished if one.value is not None]
    for one in told:
        if one.state is not TrialState.PRUNED:
            continue
        if any(excess > 0 for excess in one.constraints.values()):
            ended.append(_copy(one, value=statistics.fmean(losses)))
        elif one.intermediate_values:
            ended.append(_copy(one, value=min(_expected_end(one, finished), cap)))
    return ended


def _expected_end(stopped: FrozenTrial, finished: Sequence[FrozenTrial]) -> float:
    """A stopped trial's expected final loss: its last rung minus the median fall of completed trials from there."""
    rung = max(stopped.intermediate_values)
    falls = [
        one.intermediate_values[rung] - one.value
        for one in finished
        if one.value is not None and math.isfinite(one.intermediate_values.get(rung, math.nan))
    ]
    return stopped.intermediate_values[rung] - (statistics.median(falls) if falls else 0.0)


def _num_refused_last(told: Sequence[FrozenTrial]) -> int:
    count = 0
    for one in reversed(told):
        if one.state is not TrialState.PRUNED or one.intermediate_values:
            break
        count += 1
    return count


def _copy(one: FrozenTrial, *, state: TrialState = TrialState.COMPLETE, value: float | None = None) -> FrozenTrial:
    return create_trial(
        state=state,
        value=value,
        params=one.params,
        distributions=one.distributions,
        constraints=one.constraints if state is TrialState.COMPLETE else None,
    )
