"""Optuna behind one honest door: what is proposed next, and what the sampler is told of each trial's end.

The sampler is told the truth (Tune's own OptunaSearch tells an early-stopped trial as complete and an infeasible one as
failed, which TPE forgets): infeasible is a constraint, diverged is bad, stopped is pruned with its values at the rungs,
interrupted is nothing at all.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from core.run_config import RunConfig
from sweeps.early_stopping import KeptOutOfPickles
from sweeps.ledger import Ledger
from sweeps.memory_frontier import MICRO_BATCH, SMALLEST_EXCESS, MemoryFrontier, Refusal, micro_batch_of
from sweeps.outcomes import Outcome
from sweeps.search_space import SearchSpace
from sweeps.sweep_config import SweepConfig
from sweeps.trial_records import RefusedProposal, TrialRecord

MAX_REFUSALS_IN_A_ROW = 200
"""Proposals refused, or known already, one after another before the rest of the space counts as used up."""


class SettingsSampler:
    """Proposes settings and learns from records; knows nothing of Tune."""

    def __init__(
        self,
        sweep: SweepConfig,
        *,
        worst_loss: float,
        known: Sequence[TrialRecord] = (),
        refused: Sequence[RefusedProposal] = (),
    ) -> None:
        """
        Args:
            worst_loss: Loss told for a diverged trial, in nats per token: that of a model that knows nothing.
            known: Trials of an earlier part of the sweep.
            refused: Its proposals that memory ruled out.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space: dict[str, BaseDistribution] = {
            path: distribution.to_optuna() for path, distribution in sweep.search.items()
        }
        self._worst_loss = worst_loss
        # A sweep that goes on must not draw the same random numbers again: it would propose the same settings.
        self._study = optuna.create_study(sampler=_sampler(sweep, num_known=len(known)), direction="minimize")
        self._grid = _grid(sweep.search, sweep.searcher.grid_points) if sweep.searcher.method == "grid" else None
        self._asked: dict[int, optuna.Trial] = {}
        for record in known:
            self.ended(record)
        for proposal in refused:
            self._tell(proposal.settings, _infeasible(proposal))

    def keep(self, is_wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Of a grid propose only these settings."""
        if self._grid is not None:
            self._grid = iter([settings for settings in self._grid if is_wanted(settings)])

    def propose(self) -> tuple[dict[str, Any], optuna.Trial | None] | None:
        """Settings to try next with the handle to answer for them; None when a grid is used up."""
        if self._grid is not None:
            settings = next(self._grid, None)
            return None if settings is None else (settings, None)
        trial = self._study.ask(self._space)
        return trial.params, trial

    def refused(self, handle: optuna.Trial | None, *, excess: float) -> None:
        """The proposal does not fit in memory: a constraint broken, no value.

        Args:
            excess: By how much it is broken, above 0: of two that do not fit TPE prefers the one that nearly does.
        """
        if handle is not None:
            handle.set_constraint("memory", excess)
            self._study.tell(handle, state=TrialState.PRUNED)

    def known_already(self, handle: optuna.Trial | None) -> None:
        """The proposal equals a trial that there is: nothing to learn from it."""
        if handle is not None:
            self._study.tell(handle, state=TrialState.FAIL)

    def launched(self, record: TrialRecord, handle: optuna.Trial | None) -> None:
        """The proposal became a trial."""
        if handle is not None:
            self._asked[record.number] = handle

    def ended(self, record: TrialRecord) -> None:
        """Tell the sampler how a trial ended; trials that it did not propose count as well."""
        handle = self._asked.pop(record.number, None)
        if handle is not None:
            # What it is told goes in as a finished trial below; the open one is closed without a trace.
            self._study.tell(handle, state=TrialState.FAIL)
        for settings, known in self._as_optuna(record):
            self._tell(settings, known)

    def _as_optuna(self, record: TrialRecord) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """What a trial's end says, as settings and what is known of them."""
        known: dict[str, Any] = {"constraints": {"memory": -1.0}}
        match record.outcome:
            case Outcome.COMPLETED if record.loss is not None:
                known |= {"state": TrialState.COMPLETE, "value": record.loss}
            case Outcome.DIVERGED:
                known |= {"state": TrialState.COMPLETE, "value": self._worst_loss}
            case Outcome.STOPPED if record.rung_losses:
                known |= {"state": TrialState.PRUNED, "intermediate_values": record.rung_losses}
            case Outcome.INFEASIBLE:
                yield record.settings, _infeasible(record)
                return
            case _:
                return
        fitting = self._fitting_size(record)
        if fitting is None:
            yield record.settings, known
        else:
            # Two truths: what was asked for does not fit, and the same with fewer rows at once has this loss.
            yield record.settings, _infeasible(record)
            yield record.settings | {MICRO_BATCH: fitting}, known

    def _fitting_size(self, record: TrialRecord) -> int | None:
        """The micro-batch to which a loss belongs that was reached with fewer rows at once than asked for.

        The largest in the space that is not above the one used, for a micro-batch changes nothing in what is learnt.
        """
        used = record.micro_batch_size_used
        if not record.out_of_memory_micro_batches or used is None or MICRO_BATCH not in record.settings:
            return None
        space = self._space.get(MICRO_BATCH)
        sizes = space.choices if isinstance(space, CategoricalDistribution) else (used,)
        return max((size for size in sizes if isinstance(size, int) and size <= used), default=None)

    def _tell(self, settings: dict[str, Any], known: dict[str, Any]) -> None:
        params = {path: value for path, value in settings.items() if path in self._space}
        distributions = {path: self._space[path] for path in params}
        # A value of `start_with` outside the space: the sampler has no place for it.
        if all(space._contains(space.to_internal_repr(params[path])) for path, space in distributions.items()):
            self._study.add_trial(create_trial(params=params, distributions=distributions, **known))


class SweepSearcher(KeptOutOfPickles, Searcher):
    """Tune's view of the sampler: trials left over, then those the file lists, then proposals that fit in memory."""

    def __init__(
        self,
        sweep: SweepConfig,
        ledger: Ledger,
        frontier: MemoryFrontier,
        *,
        worst_loss: float,
        trial_config: Callable[[TrialRecord, RunConfig], dict[str, Any]],
        largest_micro_batch: Callable[[RunConfig, int], int],
    ) -> None:
        """
        Args:
            largest_micro_batch: Of a run, predicted to need at most so many bytes.
        """
        super().__init__(metric=None, mode=None)
        self._sweep, self._ledger, self._frontier = sweep, ledger, frontier
        self._largest_micro_batch = largest_micro_batch
        self._trial_config = trial_config
        known = [record for record in ledger.records.values() if record.is_done]
        self._sampler = SettingsSampler(sweep, worst_loss=worst_loss, known=known, refused=ledger.refused)
        self._numbers: dict[str, int] = {}
        self._left_over = deque(ledger.unfinished())
        listed_before = sum(record.chosen_by == "start_with" for record in ledger.records.values())
        self._listed = deque(sweep.start_with[listed_before:])
        # A grid is known whole: what does not fit is listed before anything starts.
        self._sampler.keep(self._may_be_launched)

    def suggest(self, trial_id: str) -> Any:
        """The next trial's config, `FINISHED`, or None: ask again when a running trial has ended."""
        record = None if self._ledger.is_hopeless() else self._next_record()
        if record is None:
            is_waiting = self._num_running() > 0
            return None if is_waiting else str(Searcher.FINISHED)
        self._numbers[trial_id] = record.number
        run = self._launched_as(record)
        self._ledger.start(record.number, micro_batch_size=micro_batch_of(run, self._frontier.num_workers))
        return self._trial_config(record, run)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Settle the trial and tell the sampler."""
        number = self._numbers.pop(trial_id, None)
        if number is not None:
            self._sampler.ended(self._ledger.settle(number, result, lost=error))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing to do: the ledger keeps the losses at rungs."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the trial records say everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a new searcher reads the trial records."""

    def _run_of(self, settings: dict[str, Any]) -> RunConfig:
        return self._sweep.run_config(settings)

    def _num_running(self) -> int:
        return len(self._numbers)

    def _next_record(self) -> TrialRecord | None:
        if self._left_over:
            return self._ledger.reopen(self._left_over.popleft())
        while self._listed and not self._is_in_doubt_beside_another(self._listed[0]):
            settings = self._listed.popleft()
            record = self._ledger.open(settings, "start_with")
            # The user asked for exactly this: only what has been observed may refuse it, never a prediction.
            refusal = self._frontier.refusal(self._run_of(settings), trust_prediction=False, may_shrink=True)
            if refusal is None:
                return record
            self._ledger.refuse(record, refusal)
        if self._num_trials_that_count() + len(self._listed) >= self._sweep.budget.trials:
            return None
        return self._propose_feasible()

    def _is_in_doubt_beside_another(self, settings: dict[str, Any]) -> bool:
        # One launch against the prediction at a time: the second may be ruled out by what the first one shows. A trial
        # that has reported has shown it.
        running = [self._ledger.records[number] for number in self._numbers.values()]
        untried = [record.settings for record in running if not record.tokens]
        return any(self._is_in_doubt(other) for other in untried) and self._is_in_doubt(settings)

    def _is_in_doubt(self, settings: dict[str, Any]) -> bool:
        return self._frontier.refusal(self._run_of(settings)) is not None

    def _num_trials_that_count(self) -> int:
        return sum(record.outcome is not Outcome.INFEASIBLE for record in self._ledger.records.values())

    def _propose_feasible(self) -> TrialRecord | None:
        for _ in range(MAX_REFUSALS_IN_A_ROW):
            proposal = self._sampler.propose()
            if proposal is None:
                return None
            settings, handle = proposal
            if any(record.settings == settings for record in self._ledger.records.values()):
                self._sampler.known_already(handle)
                continue
            refusal = self._refusal(settings)
            if refusal is None:
                record = self._ledger.open(settings, "search")
                self._sampler.launched(record, handle)
                return record
            self._sampler.refused(handle, excess=refusal.excess)
            self._ledger.refuse_proposal(settings, self._run_of(settings), refusal)
        return None

    def _may_be_launched(self, settings: dict[str, Any]) -> bool:
        if any(refused.settings == settings for refused in self._ledger.refused):
            return False
        refusal = self._refusal(settings)
        if refusal is not None:
            self._ledger.refuse_proposal(settings, self._run_of(settings), refusal)
        return refusal is None

    def _refusal(self, settings: dict[str, Any]) -> Refusal | None:
        # A swept micro-batch that does not fit is refused, for another will be proposed; one that is fixed shrinks.
        return self._frontier.refusal(self._run_of(settings), may_shrink=MICRO_BATCH not in self._sweep.search)

    def _launched_as(self, record: TrialRecord) -> RunConfig:
        """The run of a trial; with fewer rows at once than it asks for where those are known to be too many."""
        run = self._run_of(record.settings)
        if run.training.on_oom == "stop":
            return run
        is_proposed = record.chosen_by != "start_with"
        return self._frontier.fitting(run, self._largest_micro_batch, trust_prediction=is_proposed)


def _infeasible(one: TrialRecord | RefusedProposal) -> dict[str, Any]:
    """What Optuna is told of settings that do not fit: a constraint broken by as much as the limit is short."""
    predicted, limit = one.predicted_peak_memory_bytes, one.memory_limit_bytes
    # A little where the prediction was within the limit, and memory ran out all the same.
    excess = max(predicted / limit - 1, SMALLEST_EXCESS) if predicted and limit else 1.0
    return {"state": TrialState.PRUNED, "constraints": {"memory": excess}}


def _sampler(sweep: SweepConfig, num_known: int) -> optuna.samplers.BaseSampler:
    seed = sweep.searcher.seed + num_known
    if sweep.searcher.method == "tpe":
        # A third of a small budget is enough to start from; Optuna's ten would make a sweep of ten a random one.
        num_random = min(10, max(3, math.ceil(sweep.budget.trials / 3)))
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=num_random)
    return optuna.samplers.RandomSampler(seed=seed)


def _grid(space: SearchSpace, points: int) -> Iterator[dict[str, Any]]:
    axes = {path: distribution.grid(points) for path, distribution in space.items()}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))
