"""The sampler behind one interface: Optuna proposes settings and learns the outcome of each trial.

Tune's own OptunaSearch reports a stopped trial as complete and an infeasible one as failed, which TPE ignores. Here an
infeasible trial breaks a constraint, a diverged one has a bad loss, a stopped one is pruned with its losses at the
rungs, and an interrupted one is not reported.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState, create_trial

from sweeps.memory_knowledge.memory_frontier import SMALLEST_EXCESS
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import RefusedProposal, TrialRecord
from sweeps.search.gaussian_process import GaussianProcessSampler
from sweeps.search.prior_trials import PriorKnowledge
from sweeps.search_space.conditional_search import distinct, in_space
from sweeps.search_space.optuna_space import optuna_space
from sweeps.settings.setting_paths import MICRO_BATCH
from sweeps.settings.sweep_config import SweepConfig

_MODEL_REPEATS = 20
"""Known settings proposed in a row after which settings are drawn at random: a model over lists may repeat the same few
and never try the others."""
_REDRAWS = 100
"""Draws in place of one that breaks a constraint of the file; after that the searcher refuses it and counts it."""


_Told = tuple[dict[str, Any], dict[str, Any]]
"""Settings, and the arguments of `create_trial` for their outcome."""


class SettingsSampler:
    """Proposes settings and learns from records; does not depend on Tune."""

    def __init__(
        self,
        sweep: SweepConfig,
        *,
        worst_loss: float,
        known: Sequence[TrialRecord] = (),
        refused: Sequence[RefusedProposal] = (),
        prior: PriorKnowledge | None = None,
    ) -> None:
        """
        Args:
            worst_loss: Cost of a diverged trial (TrialRecord.cost): by default the loss of an untrained model, in nats.
            known: Trials from before a resumption.
            refused: Proposals from before it that memory ruled out.
            prior: Trials of earlier sweeps; TPE and the Gaussian process learn from them, other methods do not.
        """
        # Its warnings name packages that speed up proposals; they would break the progress display.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._search, self._sweep = sweep.search, sweep
        self._space = optuna_space(sweep.search)
        self._worst_loss = worst_loss
        self._file_values = {path: sweep.value_at(path) for path in self._space}
        # A resumed sweep must not draw the same random numbers again: it would propose the same settings.
        method = _sampler(sweep, self._space, len(known), worst_loss)
        self._storage = _Correctable()
        self._study = optuna.create_study(storage=self._storage, sampler=method, direction="minimize")
        self._grid = _grid(sweep) if sweep.searcher.method == "grid" else None
        self._random = optuna.samplers.RandomSampler(seed=sweep.searcher.seed + len(known))
        self._num_known_in_a_row = 0
        self._asked: dict[int, optuna.Trial] = {}
        self._told: dict[int, list[_Told]] = {}
        """Trial number to the outcomes that the study was told."""
        self._told_as: dict[int, list[int]] = {}
        """Trial number to the ids of its trials in the study."""
        self._has_distances = sweep.searcher.method == "gp"
        self._prior = prior if sweep.searcher.method in ("tpe", "gp") else None
        self._prior_as: list[int] = []
        """Ids of the trials in the study that stand for earlier ones."""
        self._ended: dict[int, TrialRecord] = {}
        self._is_prior_due = True
        for record in known:
            self.ended(record)
        for proposal in refused:
            self._tell(self._as_trial(proposal.settings, _infeasible(proposal)))

    def keep(self, is_wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only the wanted settings of a grid; other methods ignore it."""
        if self._grid is not None:
            self._grid = iter([settings for settings in self._grid if is_wanted(settings)])

    def propose(self) -> tuple[dict[str, Any], optuna.Trial | None] | None:
        """Settings to try next, with the handle for their outcome; None when a grid is used up."""
        if self._grid is not None:
            settings = next(self._grid, None)
            return None if settings is None else (settings, None)
        self._weigh_prior()
        method = self._study.sampler
        if self._num_known_in_a_row >= _MODEL_REPEATS:
            self._study.sampler = self._random
        trial = self._study.ask(self._space)
        for _ in range(_REDRAWS):
            if not self._sweep.breaks_a_constraint(trial.params):
                break
            trial.set_constraint("settings", 1.0)
            self._study.tell(trial, state=TrialState.PRUNED)
            trial = self._study.ask(self._space)
        self._study.sampler = method
        return self._sweep.settled(trial.params), trial

    def refused(self, handle: optuna.Trial | None, *, excess: float) -> None:
        """Report a proposal that does not fit in memory: a broken constraint without a loss.

        Args:
            excess: Violation of the constraint, above 0: TPE prefers the smaller of two.
        """
        if handle is not None:
            handle.set_constraint("memory", excess)
            self._study.tell(handle, state=TrialState.PRUNED)
        self._num_known_in_a_row = 0

    def known_already(self, handle: optuna.Trial | None) -> None:
        """Report a proposal that equals a known trial: the study learns nothing from it."""
        self._num_known_in_a_row += 1
        if handle is not None:
            self._study.tell(handle, state=TrialState.FAIL)

    def launched(self, record: TrialRecord, handle: optuna.Trial | None) -> None:
        """Report a proposal that became a trial."""
        self._num_known_in_a_row = 0
        if handle is not None:
            self._asked[record.number] = handle

    def ended(self, record: TrialRecord) -> None:
        """Report the end of a trial, or the rungs of a paused one.

        Trials that the sampler did not propose count too. A second report of a trial replaces the first.
        """
        handle = self._asked.pop(record.number, None)
        if handle is not None:
            # The outcome enters as a finished trial below; FAIL removes the open one from the model.
            self._study.tell(handle, state=TrialState.FAIL)
        self._ended[record.number], self._is_prior_due = record, True
        told = list(self._as_optuna(record))
        before = self._told.get(record.number)
        if told == before:
            return
        self._told[record.number] = told
        trials = [trial for one in told if (trial := self._as_trial(*one)) is not None]
        ids = self._told_as.setdefault(record.number, [])
        for told_as, trial in itertools.zip_longest(ids[:], trials):
            if told_as is None:
                ids += self._tell(trial)
            else:
                # A shorter outcome than before: FAIL removes the earlier one from the model.
                self._storage.put_right(told_as, trial or create_trial(state=TrialState.FAIL))

    def _weigh_prior(self) -> None:
        """Bring the earlier trials in the study to the trust that the own ones leave them."""
        if self._prior is None or not self._is_prior_due:
            return
        self._is_prior_due = False
        trials = []
        for settings, loss in self._prior.observations(list(self._ended.values()), fades=self._has_distances):
            known = {"state": TrialState.COMPLETE, "value": loss, "constraints": {"memory": 0.0}}
            trial = self._as_trial(settings, known)
            trials += [] if trial is None else [trial]
        for told_as, trial in itertools.zip_longest(self._prior_as[:], trials):
            if told_as is None:
                self._prior_as += self._tell(trial)
            else:
                self._storage.put_right(told_as, trial or create_trial(state=TrialState.FAIL))

    def _as_optuna(self, record: TrialRecord) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The outcome of a trial, as settings with arguments of `create_trial`."""
        known: dict[str, Any] = {"constraints": {"memory": _memory_used(record) - 1}}
        match record.outcome:
            case Outcome.COMPLETED if record.cost is not None:
                known |= {"state": TrialState.COMPLETE, "value": record.cost, "intermediate_values": _at_rungs(record)}
            case Outcome.DIVERGED:
                known |= {"state": TrialState.COMPLETE, "value": self._worst_loss}
            case Outcome.STOPPED | None if at_rungs := _at_rungs(record):
                known |= {"state": TrialState.PRUNED, "intermediate_values": at_rungs}
            case Outcome.INFEASIBLE:
                yield record.settings, _infeasible(record)
                return
            case _:
                return
        fitting = self._fitting_size(record)
        if fitting is None:
            yield record.settings, known
        else:
            # Two outcomes: the micro-batch asked for does not fit, and the smaller one has this loss.
            yield record.settings, _infeasible(record)
            yield record.settings | {MICRO_BATCH: fitting}, known

    def _fitting_size(self, record: TrialRecord) -> int | None:
        """The micro-batch of the space for a loss that was reached with a smaller one than asked for.

        It is the largest one up to the one used, because a micro-batch does not change learning. None if the
        trial did not shrink.
        """
        used = record.micro_batch_size_used
        if not record.out_of_memory_micro_batches or used is None or MICRO_BATCH not in record.settings:
            return None
        space = self._space.get(MICRO_BATCH)
        sizes = space.choices if isinstance(space, CategoricalDistribution) else (used,)
        return max((size for size in sizes if isinstance(size, int) and size <= used), default=None)

    def _as_trial(self, settings: dict[str, Any], known: dict[str, Any]) -> optuna.trial.FrozenTrial | None:
        # Settings missing in `start_with` get the file's value: a trial without them would shrink the common space.
        params = {path: settings.get(path, self._file_values[path]) for path in self._space}
        for path, swept in self._search.items():
            if swept.when and not swept.is_searched(params.__getitem__):
                params[path] = in_space(swept, params[path])  # It has no effect, and the study has no other value.
        # The sampler cannot represent a value of `start_with` outside the space.
        if not all(swept.holds(params[path]) for path, swept in self._search.items()):
            return None
        return create_trial(params=params, distributions=self._space, **known)

    def _tell(self, trial: optuna.trial.FrozenTrial | None) -> list[int]:
        """Add a trial to the study; its id, or an empty list for None."""
        return [] if trial is None else [self._storage.create_new_trial(self._study._study_id, template_trial=trial)]


def _at_rungs(record: TrialRecord) -> dict[int, float]:
    """Costs at rungs. Records keep losses there; of another metric only the last value is known."""
    if record.ranked_by.is_loss:
        return record.rung_losses
    if record.outcome is Outcome.COMPLETED or record.cost is None or not record.rung_losses:
        return {}
    return {max(record.rung_losses): record.cost}


class _Correctable(optuna.storages.InMemoryStorage):
    """A storage whose trials can be replaced: rebuilding the study takes longer with each trial."""

    def put_right(self, trial_id: int, trial: optuna.trial.FrozenTrial) -> None:
        """Replace a trial under its id."""
        with self._lock:
            trial.number, trial._trial_id = self._get_trial(trial_id).number, trial_id
            self._set_trial(trial_id, trial)


def _infeasible(one: TrialRecord | RefusedProposal) -> dict[str, Any]:
    """The outcome of settings that do not fit: a constraint broken by the excess over the limit."""
    predicted, limit = one.predicted_peak_memory_bytes, one.memory_limit_bytes
    # The smallest excess if the trial ran out of memory although the prediction was within the limit.
    excess = max(predicted / limit - 1, SMALLEST_EXCESS) if predicted and limit else 1.0
    return {"state": TrialState.PRUNED, "constraints": {"memory": excess}}


def _memory_used(record: TrialRecord) -> float:
    """Predicted share of the limit of a trial that fitted, so below 1; 0 without a prediction."""
    predicted, limit = record.predicted_peak_memory_bytes, record.memory_limit_bytes
    return min(predicted / limit, 1 - SMALLEST_EXCESS) if predicted and limit else 0.0


def _sampler(
    sweep: SweepConfig, space: dict[str, BaseDistribution], num_known: int, worst_loss: float
) -> optuna.samplers.BaseSampler:
    seed = sweep.searcher.seed + num_known
    num_random = num_random_first(sweep)
    if sweep.searcher.method == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=num_random)
    if sweep.searcher.method == "gp":
        return GaussianProcessSampler(space, seed=seed, num_random=num_random, worst_loss=worst_loss)
    return optuna.samplers.RandomSampler(seed=seed)


def num_random_first(sweep: SweepConfig) -> int:
    """Trials at random with which a model of the losses begins."""
    # A third of a small budget: with Optuna's ten a sweep of ten trials would be random.
    return min(10, max(3, math.ceil(sweep.budget.trials / 3)))


def _grid(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    axes = {path: distribution.grid(sweep.searcher.grid_points) for path, distribution in sweep.search.items()}
    points = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    for settings in distinct(sweep.search, points, sweep.value_at):
        if not sweep.breaks_a_constraint(settings):
            yield settings
