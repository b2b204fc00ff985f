"""The next trial for Tune: interrupted trials, those of the file, then valid proposals that fit in memory."""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any

from ray.tune.search import Searcher

from core.settings.run_config import RunConfig
from core.user_code.code_places import UserCodeError
from sweeps.analysis.expected_gain import expected_gain
from sweeps.analysis.noise_floor import next_repeat
from sweeps.analysis.space_widening import MOST_WIDENINGS, widened_sweep, widening
from sweeps.early_stopping.promotion import Promotions
from sweeps.early_stopping.token_scheduler import KeptOutOfPickles
from sweeps.memory_knowledge.memory_frontier import MemoryFrontier, Refusal, micro_batch_of
from sweeps.memory_knowledge.micro_batch_store import MicroBatches, without_micro_batch
from sweeps.records.outcomes import Outcome
from sweeps.records.throttle import Pace
from sweeps.records.trial_records import ChosenBy, MemoryVerdict, TrialRecord
from sweeps.search.full_length_search import FullLengthSearch, InFull, Longer, Probe
from sweeps.search.initial_points import informed_points, with_smaller_micro_batch
from sweeps.search.ledger import Ledger
from sweeps.search.prior_trials import PriorKnowledge
from sweeps.search.settings_sampler import SettingsSampler
from sweeps.search.sweep_budget import WALL_CLOCK_USED_UP, SweepBudget
from sweeps.settings.setting_paths import MICRO_BATCH
from sweeps.settings.sweep_config import SweepConfig

MAX_REFUSALS_IN_A_ROW = 200
"""Refused or known proposals in a row after which the space counts as used up."""
_LISTED = (ChosenBy.START_WITH, ChosenBy.TAKEN_OVER)


class SweepSearcher(KeptOutOfPickles, Searcher):
    """Tune's interface to the search. Order: interrupted trials, those of the file, proposals that fit in memory."""

    def __init__(
        self,
        sweep: SweepConfig,
        ledger: Ledger,
        frontier: MemoryFrontier,
        *,
        worst_loss: float,
        trial_config: Callable[[TrialRecord, RunConfig], dict[str, Any]],
        largest_micro_batch: Callable[[RunConfig, int], int],
        budget: SweepBudget | None = None,
        promotions: Promotions | None = None,
        full_length: FullLengthSearch | None = None,
        micro_batches: MicroBatches | None = None,
        prior: PriorKnowledge | None = None,
    ) -> None:
        """
        Args:
            largest_micro_batch: Largest micro-batch of a run within a number of bytes, by prediction.
            budget: None: the number of trials in the sweep file is the only limit.
            promotions: Rule of promotion from a rung; None: trials do not pause.
            micro_batches: Known speeds: settings that differ from a trial only in a micro-batch of known speed are not
                trained. None: all are trained.
            prior: Trials of earlier sweeps; None: the search begins without any.
        """
        super().__init__(metric=None, mode=None)
        self._sweep, self._ledger, self._frontier = sweep, ledger, frontier
        self._largest_micro_batch = largest_micro_batch
        self._trial_config = trial_config
        self._budget = budget or SweepBudget(sweep.budget, elapsed_s=lambda: 0.0)
        self.ended_by = ""
        """The limit that ended the search, in words; empty until then."""
        self._promotions, self._micro_batches = promotions, micro_batches
        self._full_length = full_length
        self._nothing_to_do_at: list[Any] | None = None
        """State of the trials at which the full-length search had no step."""
        known = [
            record
            for record in ledger.records.values()
            if (record.is_done or record.paused_at is not None) and not record.is_repeat
        ]
        self._sweep = widened_sweep(sweep, ledger.widenings)
        self._new_sampler = partial(SettingsSampler, worst_loss=worst_loss, prior=prior)
        self._sampler = self._new_sampler(self._sweep, known=known, refused=ledger.refused)
        self._num_without_gain = 0
        self._beaten_pace = Pace()
        self._numbers: dict[str, int] = {}
        self._left_over = deque(record for record in ledger.unfinished() if record.paused_at is None)
        # A trial taken over from an earlier sweep counts as its settings in `start_with`.
        listed_before = [r.settings for r in ledger.records.values() if r.chosen_by in _LISTED]
        self._listed = deque(settings for settings in sweep.start_with if settings not in listed_before)
        self._informed = deque(point.settings for point in informed_points(sweep))
        # A grid is known as a whole: its infeasible settings are refused before the first trial.
        self._sampler.keep(self._may_be_launched)

    def suggest(self, trial_id: str) -> Any:
        """The next trial's config, or `FINISHED`, or None: ask again when a running trial ends."""
        is_hopeless = self._ledger.is_hopeless()
        record = None if is_hopeless else self._next_leg()
        if record is None and not is_hopeless and self._is_search_over():
            record = self._next_in_a_wider_space() or self._next_repeat()
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
        if number is None:
            return
        record = self._ledger.settle(number, result, lost=error)
        # A repeat is no new point of the space.
        if not record.is_repeat:
            self._sampler.ended(record)
            self._note_gain()
        # Paced: a pass over all trials, and a delay only keeps checkpoints longer.
        if self._promotions is not None and self._beaten_pace.is_due():
            done = self._beaten_pace.start()
            beaten = list(self._promotions.beaten(self._ledger.records.values()))
            done()
            for one, reason in beaten:
                self._sampler.ended(self._ledger.stop_paused(one.number, reason))
        for twin in self._ledger.twins:
            if twin.is_done:
                self._sampler.ended(twin)  # A repeated report has no effect.

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Does nothing: the ledger keeps the losses at rungs."""

    def is_cut_off(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether a reporting trial must stop because the wall-clock is used up."""
        number = self._numbers.get(trial_id)
        if number is None or result.get("done") or not self._budget.is_over():
            return False
        self._ledger.cut_off(number, WALL_CLOCK_USED_UP)
        return True

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the trial records hold the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: a new searcher reads the trial records."""

    def _run_of(self, settings: dict[str, Any]) -> RunConfig:
        return self._sweep.run_config(settings)

    def _num_running(self) -> int:
        return len(self._numbers)

    def _next_leg(self) -> TrialRecord | None:
        """The trial to start, resume or promote; None if there is none now."""
        if self._left_over:
            return self._ledger.reopen(self._left_over.popleft())
        if self._full_length is not None:
            return self._next_listed() or self._next_step(self._full_length)
        return self._promoted(is_closing=False) or self._next_record() or self._promoted(is_closing=True)

    def _next_step(self, search: FullLengthSearch) -> TrialRecord | None:
        """The trial of the next step towards the winner at the full length."""
        if self._budget.is_over():
            self.ended_by = WALL_CLOCK_USED_UP
            return None
        records = self._ledger.records.values()
        # Tune asks at every event of a running trial, and a decision takes some tens of milliseconds.
        state = [(one.number, one.outcome, one.paused_at, one.run_to_end) for one in records]
        if state == self._nothing_to_do_at:
            return None
        # The candidates meet the constraints; their scaled probes need not.
        step = search.next(records, may_start=partial(self._may_be_launched, is_probe=True))
        match step:
            case Probe(settings):
                return self._ledger.open(settings, ChosenBy.PROBE)
            case Longer(record):
                return record
            case InFull(settings, None):
                return self._ledger.open(settings, ChosenBy.PREDICTED)
            case InFull(_, record) if record is not None:
                return self._ledger.train_in_full(record)
        self._nothing_to_do_at = state
        self.ended_by = search.ended_by
        return None

    def _promoted(self, *, is_closing: bool) -> TrialRecord | None:
        if self._promotions is None:
            return None
        records = self._ledger.records.values()
        promoted = self._promotions.next(records, is_closing=is_closing)
        if promoted is None or not self._budget.may_promote(records, promoted):
            return None
        return promoted

    def _next_record(self) -> TrialRecord | None:
        record = self._next_listed()
        if record is not None or not self._has_budget_left():
            return record
        return self._next_informed() or self._propose_feasible()

    def _next_listed(self) -> TrialRecord | None:
        """The next trial of `start_with`; None if none is left or may start now."""
        while self._listed and not self._is_in_doubt_beside_another(self._listed[0]):
            settings = self._listed.popleft()
            record = self._ledger.open(settings, ChosenBy.START_WITH)
            # The user asked for these settings: only an observation refuses them, never a prediction.
            refusal = self._frontier.refusal(self._run_of(settings), trust_prediction=False, may_shrink=True)
            if refusal is None:
                return record
            self._ledger.refuse(record, refusal)
        return None

    def _is_search_over(self) -> bool:
        running = [self._ledger.records[number] for number in self._numbers.values()]
        return all(record.is_repeat for record in running)

    def _next_in_a_wider_space(self) -> TrialRecord | None:
        """A trial of the widened space if `searcher.extend` is set and the best trial lies on an edge."""
        widenings, records = self._ledger.widenings, list(self._ledger.records.values())
        may_widen = self._sweep.searcher.extend and len(widenings) < MOST_WIDENINGS and not self._numbers
        found = widening(self._sweep, records) if may_widen else None
        if found is None or self._has_no_more_gain():
            return None
        self._ledger.widen(found)
        self._sweep = widened_sweep(self._sweep, [found])
        known = [record for record in records if record.is_done and not record.is_repeat]
        self._sampler = self._new_sampler(self._sweep, known=known, refused=self._ledger.refused)
        self._sampler.keep(self._may_be_launched)
        return self._next_leg()

    def _has_no_more_gain(self) -> bool:
        patience = self._sweep.budget.patience
        return patience is not None and self._num_without_gain >= patience

    def _note_gain(self) -> None:
        """Count trials in a row without an expected gain above the noise."""
        if self._sweep.budget.patience is None:
            return
        gain = expected_gain(self._sweep, list(self._ledger.records.values()))
        if gain is not None:
            self._num_without_gain = 0 if gain.is_worth_a_trial else self._num_without_gain + 1

    def _next_repeat(self) -> TrialRecord | None:
        """A repeat of a leading trial while leaders tie; None if none ties or the budget is used up."""
        records = list(self._ledger.records.values())
        repeats = [r for r in records if r.is_repeat and r.outcome is not Outcome.INFEASIBLE]
        may_start, _ = self._budget.may_start_repeat(records)
        if len(repeats) >= self._budget.num_repeats or may_start == "no":
            return None
        file_seed = self._sweep.training.seed
        settings = next_repeat(records, leaders=self._sweep.repeats.leaders, file_seed=file_seed)
        return None if settings is None else self._ledger.open(settings, ChosenBy.REPEAT)

    def _has_budget_left(self) -> bool:
        more_trials = sum(one.more_trials for one in self._ledger.widenings)
        num_waiting = len(self._listed) - more_trials
        may_start, why = self._budget.may_start_trial(self._ledger.records.values(), num_waiting=num_waiting)
        if self._has_no_more_gain():
            may_start, why = "no", f"{self._num_without_gain} trials in a row with an expected gain below the noise"
        self.ended_by = why if may_start == "no" else ""
        return may_start == "yes"

    def _next_informed(self) -> TrialRecord | None:
        while self._informed:
            settings: dict[str, Any] | None = self._informed.popleft()
            while settings is not None and self._refusal(settings) is not None:
                settings = with_smaller_micro_batch(self._sweep, settings)
            if settings is not None and not self._is_known(settings):
                return self._ledger.open(settings, ChosenBy.INFORMED)
        return None

    def _is_known(self, settings: dict[str, Any]) -> bool:
        return settings in map(attrgetter("settings"), self._ledger.records.values())

    def _is_in_doubt_beside_another(self, settings: dict[str, Any]) -> bool:
        # One launch against the prediction at a time: the first may rule out the second. A trial with reported
        # tokens fitted.
        running = [self._ledger.records[number] for number in self._numbers.values()]
        untried = [record.settings for record in running if not record.tokens]
        return any(self._is_in_doubt(other) for other in untried) and self._is_in_doubt(settings)

    def _is_in_doubt(self, settings: dict[str, Any]) -> bool:
        return self._frontier.refusal(self._run_of(settings)) is not None

    def _propose_feasible(self) -> TrialRecord | None:
        for _ in range(MAX_REFUSALS_IN_A_ROW):
            proposal = self._sampler.propose()
            if proposal is None:
                self.ended_by = "all points of the grid"
                return None
            settings, handle = proposal
            if self._is_known(settings):
                self._sampler.known_already(handle)
                continue
            refusal = self._refusal(settings)
            if refusal is None and self._is_twin(settings):
                self._sampler.known_already(handle)
                if not self._has_budget_left():
                    return None
                continue
            if refusal is None:
                record = self._ledger.open(settings, ChosenBy.SEARCH)
                self._sampler.launched(record, handle)
                return record
            self._sampler.refused(handle, excess=refusal.excess)
            self._record_refusal(settings, refusal)
        self.ended_by = f"{MAX_REFUSALS_IN_A_ROW} proposals in a row were known, invalid or too large for the memory"
        return None

    def _is_twin(self, settings: dict[str, Any]) -> bool:
        """Whether a trial differs from these settings only in the micro-batch; if so, open a twin of it."""
        if self._micro_batches is None or MICRO_BATCH not in settings:
            return False
        wanted = without_micro_batch(settings)
        originals = (
            record
            for record in self._ledger.records.values()
            if without_micro_batch(record.settings) == wanted
            and record.outcome in (None, Outcome.COMPLETED, Outcome.STOPPED, Outcome.DIVERGED)
            and record.twin_of is None
            and not record.is_repeat
        )
        original = next(originals, None)
        speed = None if original is None else self._micro_batches.speed(self._run_of(settings))
        if original is None or speed is None or speed.rows_per_s is None:
            return False
        self._ledger.open_twin(settings, original, speed)
        return True

    def _may_be_launched(self, settings: dict[str, Any], *, is_probe: bool = False) -> bool:
        if any(refused.settings == settings for refused in self._ledger.refused):
            return False
        refusal = self._refusal(settings, is_probe=is_probe)
        if refusal is not None:
            self._record_refusal(settings, refusal)
        return refusal is None

    def _record_refusal(self, settings: dict[str, Any], refusal: Refusal) -> None:
        asked = settings.get(MICRO_BATCH, self._sweep.training.micro_batch_size)
        self._ledger.refuse_proposal(settings, refusal, micro_batch_size=asked)

    def _refusal(self, settings: dict[str, Any], *, is_probe: bool = False) -> Refusal | None:
        fault = self._sweep.fault_of(settings, is_probe=is_probe)
        if fault is not None:
            return Refusal(MemoryVerdict.INVALID, fault, predicted_bytes=None, excess=1.0)
        run = self._run_of(settings)
        if run.model.class_ is not None:
            try:
                self._frontier.predict(run.with_overrides({MICRO_BATCH: 1}))
            except UserCodeError as error:  # Its arguments do not go together.
                return Refusal(MemoryVerdict.INVALID, str(error), predicted_bytes=None, excess=1.0)
        # A swept micro-batch that does not fit is refused, because another will be proposed; a fixed one shrinks.
        return self._frontier.refusal(run, may_shrink=MICRO_BATCH not in self._sweep.search)

    def _launched_as(self, record: TrialRecord) -> RunConfig:
        """The run of a trial, with a smaller micro-batch if the one asked for is known not to fit."""
        run = self._run_of(record.settings)
        if run.training.on_oom == "stop":
            return run
        is_proposed = record.chosen_by is not ChosenBy.START_WITH
        return self._frontier.fitting(run, self._largest_micro_batch, trust_prediction=is_proposed)
