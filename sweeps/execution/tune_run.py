"""The parts of one running sweep, and the Ray Tune run that connects them."""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from core.costs.parameter_counts import parameter_counts
from core.costs.training_flops import training_flops_a_token
from core.memory.memory_reports import MicroBatchSpeed
from core.settings.run_config import RunConfig
from data_pipeline.files.machine_faults import machine_fault
from data_pipeline.preparation.node_copies import all_nodes_see, serve_copies
from data_pipeline.tokens.token_blocks import PreparedCorpus
from data_pipeline.tokens.tokenizer import load_tokenizer
from sweeps.early_stopping.median_stopping import MedianRule
from sweeps.early_stopping.promotion import drawn_to_run_to_the_end
from sweeps.early_stopping.rungs import Rungs, StoppingRule
from sweeps.early_stopping.token_scheduler import KeptOutOfPickles
from sweeps.execution.checkpoint_retention import KeptCheckpoints
from sweeps.execution.lost_ray import SeesLostRay
from sweeps.execution.machine_halt import SweepHaltedError
from sweeps.execution.temporary_state import temporary_state
from sweeps.lanes.elastic_lanes import HoldsBack, LaneCount, nodes_now
from sweeps.lanes.ended_trial_cleanup import ForgetsEndedTrials, RemembersNoTrials
from sweeps.lanes.hardware import hardware
from sweeps.lanes.lane_planning import device_kind
from sweeps.lanes.lane_trainable import LaneTrainable
from sweeps.lanes.mailbox import Assignment
from sweeps.lanes.orphaned_placement_groups import FreesDeadLanes
from sweeps.lanes.silent_reporter import SilentReporter
from sweeps.memory_knowledge.memory_observations import MemoryStore, Remembering, file_of_device
from sweeps.memory_knowledge.micro_batch_store import MicroBatches, swept_micro_batches
from sweeps.planning.feasibility_check import check_that_something_fits
from sweeps.planning.resolved_sweep import PreparedSweep
from sweeps.planning.stage_preparation import stage_assignments
from sweeps.planning.sweep_plan import SweepPlan
from sweeps.planning.table_yardsticks import measured_yardsticks
from sweeps.records.git_state import git_state
from sweeps.records.remote_results import ResultsAtUri
from sweeps.records.results_folder import SweepFolder
from sweeps.records.trial_records import TrialRecord, TrialSize, TrialStore
from sweeps.report.baseline import read_baseline
from sweeps.search.full_length_search import full_length_search
from sweeps.search.ledger import Ledger
from sweeps.search.prior_trials import PriorKnowledge
from sweeps.search.settings_sampler import num_random_first
from sweeps.search.sweep_budget import SweepBudget
from sweeps.search.sweep_searcher import SweepSearcher
from sweeps.search_space.distribution import settings_in_words
from sweeps.settings.class_of_file import source_of
from sweeps.settings.setting_paths import MICRO_BATCH
from sweeps.settings.sweep_config import SweepConfig
from sweeps.tasks.labelled_tasks import TaskRows, TaskTexts, encode_task

_REFUSALS_SHOWN = 3
_MAX_LOST_LANES = 2
"""Maximum number of restarts of a trial after it lost its lane's process or its node."""


class SweepRun:
    """One running sweep: its searcher, scheduler, ledger, memory knowledge and checkpoints."""

    def __init__(
        self,
        plan: SweepPlan,
        resolved: PreparedSweep,
        folder: SweepFolder,
        *,
        wall_s: Callable[[], float],
        say: Callable[[str], None],
        at_uri: ResultsAtUri | None = None,
        tasks: Sequence[TaskTexts] = (),
        prior: PriorKnowledge | None = None,
    ) -> None:
        """
        Args:
            tasks: Labelled rows of the downstream tasks.
        """
        data = resolved.data
        self.tasks = tuple(tasks)
        self._task_rows = _in_store(self.tasks, data, plan.sweep) if tasks else None
        self.prior = prior
        self.plan, self.data, self.folder, self.at_uri = plan, data, folder, at_uri
        # Recorded at the start: a sweep may take days.
        self.git, self.hardware = git_state(Path.cwd()), hardware(list(nodes_now()))
        self._lanes = LaneCount(plan.lanes, say=say)
        self._corpus_server = None if all_nodes_see(data.folder.parent) else serve_copies(data.folder)
        self._stages = stage_assignments(resolved.stages, is_shared=self._corpus_server is None)
        sweep = plan.sweep
        code = source_of(sweep.model.class_, sweep.model.class_digest) if sweep.model.class_ is not None else None
        self._code = None if code is None else code.as_json()
        stopping = sweep.early_stopping
        # Here and not in the plan: it needs scipy, and `pretune plan` does without.
        self._full_length = full_length_search(sweep, prior) if stopping.method == "full-length" else None
        self._pauses = plan.promotions or self._full_length
        rule: StoppingRule = Rungs((), stopping.reduction_factor)  # No rungs: trials that pause are not stopped early.
        if stopping.method == "asha":
            rule = Rungs(plan.rungs, stopping.reduction_factor)
        elif stopping.method == "median":
            rule = MedianRule(plan.rungs)
        self._scheduler = ForgetsEndedTrials(rule, lambda number: self.ledger.records[number].run_to_end)
        self._scheduler.lanes = self._lanes
        self.baseline = None if sweep.baseline is None else read_baseline(sweep.baseline, folder.path.parent)
        self.yardsticks = measured_yardsticks(sweep, data)
        self.device_kind = device_kind(plan.lanes)
        memory = MemoryStore(folder.path.parent, self.device_kind)
        self.frontier = plan.frontier(rows_filled=_rows_filled(data), source=folder.path.name)
        self.frontier.learn(memory.load(torch.__version__))
        self._remembering = Remembering(memory, torch.__version__, learn=self.frontier.learn)
        self._store = TrialStore(folder.trials)
        self.micro_batches = MicroBatches(
            file_of_device(folder.path.parent, self.device_kind, "-micro-batches"),
            # On CPUs the speed also depends on the number of threads.
            shape_of=lambda run: f"{self.frontier.shape(run)}, threads {plan.lanes.threads_per_worker}",
            largest=lambda run: plan.largest_micro_batch(run, self.frontier.capacity(run).num_bytes),
            fits=lambda run: (plan.predicted_bytes(run) or 0) <= self.frontier.capacity(run).num_bytes,
            swept=swept_micro_batches(sweep),
        )
        self.ledger = Ledger(
            self._store,
            frontier=self.frontier,
            scheduler=self._scheduler,
            run_of=self.run_of,
            rungs=() if stopping.has_branches else plan.rungs,
            run_to_end=drawn_to_run_to_the_end(stopping, num_trials=sweep.num_trials, seed=sweep.searcher.seed),
            remember=self._remembering.add,
            size_of=lambda run: _size_of(run, data.vocabulary.size),
            ranked_by=sweep.ranked_by,
        )
        self.checkpoints = KeptCheckpoints(sweep, self._store, lambda: self.ledger.records.values(), at_uri=at_uri)
        rule.restore(self.ledger.records.values())
        # A killed driver may not have stored its last observations.
        for record in self.ledger.records.values():
            self._remembering.add(self.frontier.learn_trial(record, self.run_of(record)))
        if not sweep.start_with and not self.ledger.records:
            check_that_something_fits(plan, self.frontier)
        self._searcher = SweepSearcher(
            sweep,
            self.ledger,
            self.frontier,
            worst_loss=sweep.ranked_by.worst_cost(data.vocabulary.size),
            trial_config=self._trial_config,
            largest_micro_batch=plan.largest_micro_batch,
            budget=SweepBudget(
                sweep.budget,
                elapsed_s=wall_s,
                num_repeats=sweep.num_repeats,
                keeps_repeats=sweep.repeats.trials != "auto",
            ),
            promotions=plan.promotions,
            full_length=self._full_length,
            micro_batches=self.micro_batches,
            prior=prior,
        )

    def run_of(self, record: TrialRecord) -> RunConfig:
        """The training run of a record."""
        return self.plan.sweep.run_config(record.settings)

    def train(self) -> None:
        """Run trials with Tune until the searcher proposes no more."""
        # Tune reads pickles of its state back: a trial's error, and all trials if it has run none. They must not lie in
        # the results folder, where others can write. Lanes run on this node, so no other node needs to see them.
        try:
            with (
                temporary_state() as state,
                old_objects_left_alone(),
                (lost_ray := SeesLostRay()).ends_at_once(),
            ):
                self._tuner(state, lost_ray).fit()
        except Exception as error:
            # Tune writes its state once more when all is done, and nobody reads it.
            if not self.search_ended_by or self.ledger.unfinished() or machine_fault(error) is None:
                raise

    def _tuner(self, state: Path, lost_ray: SeesLostRay) -> tune.Tuner:
        return tune.Tuner(
            # Lanes reserve their CPUs through Train; Tune needs a request that is always satisfied.
            # The lane actors run on the driver's node, so losing another node costs a trial only its workers.
            tune.with_resources(
                LaneTrainable, tune.PlacementGroupFactory([{"memory": 1}], bundle_label_selector=[_this_node()])
            ),
            tune_config=tune.TuneConfig(
                search_alg=HoldsBack(self._searcher, self._lanes),
                scheduler=self._scheduler,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_leg_name,
                trial_dirname_creator=_leg_name,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{os.getpid()}",
                stop=self._searcher.is_cut_off,
                storage_path=str(state),
                callbacks=[
                    LedgerCallback(self.ledger, self._learn_speeds),
                    FreesDeadLanes(),
                    RemembersNoTrials(),
                    lost_ray,
                ],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=_MAX_LOST_LANES),
                verbose=0,
                progress_reporter=SilentReporter(),
            ),
        )

    @property
    def search_ended_by(self) -> str:
        """The limit that ended the search, as text; empty while the search runs."""
        return self._searcher.ended_by

    def _learn_speeds(self, assignment: Assignment, speeds: tuple[MicroBatchSpeed, ...]) -> None:
        self.micro_batches.learn(RunConfig.model_validate(assignment.run), assignment.sizes_to_measure, speeds)

    def stop_paused(self) -> None:
        """End the trials that still wait at a rung: none of them continues."""
        if self._pauses is None:
            return
        waiting = [record for record in self.ledger.unfinished() if record.paused_at is not None]
        reasons = [self._pauses.reason(record, self.ledger.records.values()) for record in waiting]
        for record, reason in zip(waiting, reasons, strict=True):
            self.ledger.stop_paused(record.number, reason)

    def prior_in_words(self) -> list[str]:
        """Trust in the trials of earlier sweeps, and what they saved; empty without any."""
        if self.prior is None:
            return []
        words = self.prior.in_words(list(self.ledger.records.values()))
        if self._full_length is None:
            words.append(self.prior.saved_in_words(num_random_first(self.plan.sweep)))
        return words

    def memory_in_words(self) -> Iterator[str]:
        """Lines about the memory knowledge before the first trial and the grid settings that are refused."""
        seen = [one for one in self.frontier.observations if not one.trial.startswith(f"{self.frontier.source}/")]
        capacity = self.frontier.capacity()
        if seen:
            learnt = f"; {capacity.learnt}" if capacity.learnt else ""
            yield f"{len(seen)} observations of earlier sweeps on {self.device_kind}{learnt}"
        refused = self.ledger.refused if self.plan.sweep.searcher.method == "grid" else []
        if refused:
            yield f"{len(refused)} settings of the grid are refused before launch; summary.json lists them all:"
            yield from (f"  {settings_in_words(one.settings)}: {one.reason}" for one in refused[:_REFUSALS_SHOWN])

    def check_that_something_ran(self) -> None:
        """Check that at least one proposal was launched.

        Raises:
            NothingFitsError: Every proposal was refused.
        """
        if not self.ledger.records and self.ledger.refused:
            check_that_something_fits(self.plan, self.frontier, nothing_ran=True)

    def settle_rest(self, *, reason: str = "") -> None:
        """Record trials that were running as interrupted; paused trials stay paused.

        Args:
            reason: The fault of the machine that ended the sweep, in words. Then the disk may refuse the records: those
                on it are older, and their trials resume from there.
        """
        self.ledger.is_halted = bool(reason)
        for record in self.ledger.unfinished():
            if record.started_at and not record.ended_at and record.paused_at is None:
                self.ledger.settle(record.number, None, reason=reason)

    def keep_memory_knowledge(self) -> None:
        """Write the memory observations that still wait."""
        self._remembering.flush()

    def _trial_config(self, record: TrialRecord, run: RunConfig) -> dict[str, Any]:
        pauses = self._pauses
        to_measure = self.micro_batches.to_measure(run)
        size = self.micro_batches.fastest(run) if run.training.micro_batch_size == "auto" else None
        if size is not None and not to_measure:
            run = run.with_overrides({MICRO_BATCH: size})
        assignment = Assignment(
            number=record.number,
            run=run.model_dump(mode="json"),
            prepared_folder=str(self.data.folder),
            trial_folder=str(self._store.folder_of(record)),
            stages=self._stages,
            trunk_folder=None if self.plan.sweep.start is None else self.plan.sweep.start.trunk_of,
            evaluate_at_tokens=self.plan.evaluate_at_tokens,
            tasks=self._task_rows,
            judge_at_tokens=self.plan.judge_at_tokens,
            sizes_to_measure=to_measure,
            pause=None if pauses is None else pauses.pause_of(record, cooldown=run.training.cooldown),
            memory_limit_bytes=self.plan.memory_bytes,
            memory_limit_by=self.plan.sweep.resources.memory_limit_by,
            checkpoint_every_s=self.plan.sweep.resources.checkpoint_every_s,
            mirror_uri=None if self.at_uri is None else self.at_uri.trial_uri(self._store.folder_of(record)),
            driver_node=_this_node()["ray.io/node-id"],
            corpus_server=self._corpus_server,
            code=self._code,
        )
        lane = self.plan.lanes.spec(self.folder.ray_state, memory_limit_by=self.plan.sweep.resources.memory_limit_by)
        return {"number": record.number, "assignment": assignment, "lane": lane}


def _in_store(
    tasks: Sequence[TaskTexts], data: PreparedCorpus, sweep: SweepConfig
) -> "ray.ObjectRef[tuple[TaskRows, ...]]":
    """Reference to the rows of the tasks in tokens, in Ray's store of objects: workers on any node take them there."""
    tokenizer = load_tokenizer(data.tokenizer_path)
    length = sweep.model.sequence_length
    return ray.put(tuple(encode_task(one, tokenizer, data.vocabulary, sequence_length=length) for one in tasks))


def _leg_name(trial: Any) -> str:
    pause = trial.config["assignment"].pause
    return f"trial-{trial.config['number']:04d}" + ("" if pause is None else f"-to-{pause.at_tokens}")


class LedgerCallback(KeptOutOfPickles, tune.Callback):
    """Forwards Tune's trial events to the ledger; a fault of the machine ends the sweep as a whole."""

    def __init__(
        self, ledger: Ledger, learn_speeds: Callable[[Assignment, tuple[MicroBatchSpeed, ...]], None] = lambda *_: None
    ) -> None:
        self._ledger, self._learn_speeds = ledger, learn_speeds

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        if "machine_fault" in result:
            self._ledger.settle(trial.config["number"], result)
            raise SweepHaltedError(result["machine_fault"])
        if "report" in result:
            self._ledger.report(trial.config["number"], result["report"])
        if "speeds" in result:
            self._learn_speeds(trial.config["assignment"], result["speeds"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._ledger.settle(trial.config["number"], trial.last_result)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._ledger.settle(trial.config["number"], None, lost=True)


def _size_of(run: RunConfig, vocabulary_size: int) -> TrialSize:
    counts = parameter_counts(run, vocabulary_size)
    return TrialSize(training_flops_a_token(run, vocabulary_size), counts.total, counts.trainable)


def _rows_filled(data: PreparedCorpus) -> int:
    """Percentage of the training rows that holds tokens."""
    return round(100 * data.train.num_tokens / (data.train.num_rows * data.train.sequence_length))


def _this_node() -> dict[str, str]:
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Limit garbage collection in the block to objects created in it.

    A driver holds torch, Ray and MLflow. A full collection takes half a second of CPU time, and trials trigger it again
    and again while the lanes wait.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
