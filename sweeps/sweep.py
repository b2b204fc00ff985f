"""Carry one sweep out, or go on with it."""

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from rich.console import Console

from core.micro_batch_speed import MicroBatchSpeed
from core.parameter_counts import parameter_counts
from core.run_config import RunConfig
from core.training_flops import training_flops_a_token
from data_pipeline.node_copies import all_nodes_see, serve_copies
from data_pipeline.token_blocks import PreparedCorpus
from sweeps.baseline import read_baseline
from sweeps.changed_sweep import begin
from sweeps.cluster import connect, device_kind, log_libraries_to
from sweeps.early_stopping import KeptOutOfPickles, Rungs, StoppingRule, rung_tokens
from sweeps.elastic_lanes import HoldsBack, LaneCount, LetsIdleLanesGo, nodes_now
from sweeps.fairness import num_predicted_positions, refuse_unfair, remarks
from sweeps.frontier_map import MAP_FILE, map_frontier
from sweeps.git_state import git_state
from sweeps.ledger import Ledger
from sweeps.mailbox import Assignment
from sweeps.median_stopping import MedianRule
from sweeps.memory_frontier import MICRO_BATCH
from sweeps.memory_observations import MemoryStore, file_of_device
from sweeps.micro_batches import MicroBatches, swept_micro_batches
from sweeps.mlflow_dataset import dataset_inputs
from sweeps.mlflow_tags import source_tags
from sweeps.noise_floor import seed_groups
from sweeps.nothing_fits import check_that_something_fits
from sweeps.plan import SweepPlan, plan_sweep
from sweeps.preparation import corpus_in_words, data_figures, prepare_with_progress
from sweeps.progress import Progress, settings_in_words
from sweeps.promotion import drawn_to_run_to_the_end
from sweeps.report import write_report
from sweeps.results import best_trial, ranked, summarize, write_summary, write_trials_csv
from sweeps.results_at_uri import ResultsAtUri
from sweeps.results_folder import LOG_FILE, SweepFolder, check_writable, sweep_identity
from sweeps.running_results import RunningResults
from sweeps.searchers import SweepSearcher
from sweeps.stages import prepare_stages, stage_assignments, stages_in_words, with_tokens_of_stages
from sweeps.start import notes_of, with_initial_weights
from sweeps.sweep_budget import SweepBudget
from sweeps.sweep_config import SweepConfig
from sweeps.tensorboard import TensorBoardLog
from sweeps.tracking import Tracking
from sweeps.trial import LaneTrainable
from sweeps.trial_records import TrialRecord, TrialSize, TrialStore, write_atomically
from sweeps.winner import NOT_YET, Winner, drop_checkpoints, export_winner

_REFUSALS_SHOWN = 3
_MAX_LOST_LANES = 2
"""Times that a trial is started again after the process of its lane, or its node, was lost."""


@dataclass(frozen=True)
class SweepEnd:
    """What a sweep left behind."""

    folder: SweepFolder
    status: str
    """`finished`; `interrupted` by the user; `incomplete` when trials were given up after losing their workers."""
    records: tuple[TrialRecord, ...]
    summary: dict[str, Any]
    was_done_before: bool
    """Nothing was left to do."""
    not_tracked: str
    """What MLflow has not taken, in words; empty when it has everything."""
    model_uri: str
    """The winner in MLflow's model registry; empty when it was not registered this time."""


def run_sweep(sweep: SweepConfig, *, results_folder: Path, console: Console, kept_at: str | None = None) -> SweepEnd:
    """Run a sweep to its end, from wherever an earlier run of the same sweep stopped.

    Args:
        kept_at: URI where the results are kept as well, and whence they come back to a fresh node.

    Raises:
        ResultsError, TrackingError, CorpusError, ResourcesError: Something the user can mend, found before training.
    """
    refuse_unfair(remarks(sweep, rungs=rung_tokens(sweep.early_stopping, sweep.budget.tokens_per_trial)))
    check_writable(results_folder)
    log_libraries_to(results_folder / LOG_FILE)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    sweep = with_initial_weights(sweep, results_folder)
    for note in notes_of(sweep):
        say(f"start    {note}")
    tracking = Tracking(results_folder, say=say)
    at_uri = None if kept_at is None else ResultsAtUri(results_folder, kept_at, say=say)
    data = prepare_with_progress(
        sweep, results_folder, console, fetch=at_uri.fetch_prepared if at_uri else lambda _: None
    )
    console.print(f"corpus   {corpus_in_words(data)}", highlight=False, soft_wrap=True)
    stages = prepare_stages(sweep, results_folder, console)
    sweep = with_tokens_of_stages(sweep, stages)
    for words in stages_in_words(stages, num_workers=sweep.resources.workers_per_trial):
        say(f"stages   {words}")
    folder = SweepFolder(results_folder, sweep, sweep_identity(sweep, data.fingerprint))
    if at_uri is not None:
        at_uri.bring_back(folder.path)
    earlier = folder.summary()
    if earlier is not None and earlier["status"] == "finished":
        records = tuple(TrialStore(folder.trials).load_all())
        _start_tracking(tracking, sweep, data, folder)
        # A server that was away at the end gets now what it missed, and one that is new gets all of it.
        if not tracking.is_complete:
            refused = TrialStore(folder.trials).load_refusals()
            tracking.finish(status="finished", records=ranked(records), folder=folder.path, refused=refused)
        return SweepEnd(
            folder,
            "finished",
            records,
            earlier,
            was_done_before=True,
            not_tracked=tracking.not_taken,
            model_uri=tracking.model_uri,
        )
    folder.create()
    with folder.locked(say), at_uri.following(folder.path, data.folder) if at_uri else nullcontext():
        begin(folder, sweep, data.fingerprint, TrialStore(folder.trials), say=say)
        return _run(sweep, data, folder, tracking, console, earlier, say, at_uri)


def _run(
    sweep: SweepConfig,
    data: PreparedCorpus,
    folder: SweepFolder,
    tracking: Tracking,
    console: Console,
    earlier: dict[str, Any] | None,
    say: Callable[[str], None],
    at_uri: ResultsAtUri | None,
) -> SweepEnd:
    started_at = time.monotonic()
    wall_s_before = 0.0 if earlier is None else earlier["wall_s"]
    connect()
    plan = plan_sweep(sweep, vocabulary_size=data.vocabulary.size, **_cluster_size())
    console.print(f"trials   {plan.lanes.reason}; results in {folder.path}", highlight=False, soft_wrap=True)

    def wall_s() -> float:
        return wall_s_before + time.monotonic() - started_at

    run = _SweepRun(plan, data, folder, wall_s=wall_s, say=say, at_uri=at_uri)
    num_predicted = num_predicted_positions(sweep, data.holdout.num_tokens)
    for remark in remarks(sweep, rungs=plan.rungs, num_predicted=num_predicted):
        if remark.verdict != "fair":
            console.print(f"{remark.verdict:<8} {remark}", highlight=False, markup=False, soft_wrap=True)
    for words in run.memory_in_words():
        console.print(f"memory   {words}", highlight=False, markup=False, soft_wrap=True)
    _start_tracking(tracking, sweep, data, folder)
    events = TensorBoardLog(folder.trials)
    progress = Progress(
        console,
        lambda: list(run.ledger.records.values()),
        num_trials=sweep.budget.trials + sweep.repeats.count(sweep.budget.trials),
        tokens_per_trial=sweep.budget.tokens_per_trial,
        num_refused=lambda: len(run.ledger.refused),
    )
    so_far = RunningResults(
        folder.path,
        sweep,
        lambda: (
            list(run.ledger.records.values()),
            _summary(run, status="running", tracking=tracking, wall_s=wall_s()),
        ),
    )
    run.ledger.listeners += [
        tracking.on_event,
        events.on_event,
        run.keep_only_the_best_checkpoint,
        so_far.on_event,
        progress.on_event,
    ]
    status = "finished"
    with progress, _terminated_like_interrupted():
        try:
            run.train()
            run.stop_paused()
        except KeyboardInterrupt:
            status = "interrupted"
    with _uninterrupted():
        run.settle_rest()
        if status == "finished" and run.ledger.unfinished():
            status = "incomplete"
        events.close()
        ray.shutdown()
        if status == "finished":
            run.drop_all_but_the_winners_checkpoint()
        else:
            run.drop_beaten_checkpoints()
        so_far.close()
        summary = _write_results(run, status=status, tracking=tracking, wall_s=wall_s())
    run.check_that_something_ran()
    records = tuple(run.ledger.records.values())
    return SweepEnd(
        folder,
        status,
        records,
        summary,
        was_done_before=False,
        not_tracked=tracking.not_taken,
        model_uri=tracking.model_uri,
    )


class _SweepRun:
    """The parts of one running sweep, put together."""

    def __init__(
        self,
        plan: SweepPlan,
        data: PreparedCorpus,
        folder: SweepFolder,
        *,
        wall_s: Callable[[], float],
        say: Callable[[str], None],
        at_uri: ResultsAtUri | None = None,
    ) -> None:
        self.plan, self.data, self.folder, self.at_uri = plan, data, folder, at_uri
        self._lanes = LaneCount(plan.lanes, say=say)
        self._corpus_server = None if all_nodes_see(data.folder.parent) else serve_copies(data.folder)
        self._stages = stage_assignments(plan.sweep, folder.path.parent, is_shared=self._corpus_server is None)
        sweep = plan.sweep
        stopping = sweep.early_stopping
        rule: StoppingRule = Rungs((), stopping.reduction_factor)  # Trials that pause are not stopped on the way.
        if stopping.method == "asha":
            rule = Rungs(plan.rungs, stopping.reduction_factor)
        elif stopping.method == "median":
            rule = MedianRule(plan.rungs)
        self._scheduler = LetsIdleLanesGo(rule, lambda number: self.ledger.records[number].run_to_end)
        self._scheduler.lanes = self._lanes
        self.baseline = None if sweep.baseline is None else read_baseline(sweep.baseline, folder.path.parent)
        self.device_kind = device_kind(plan.lanes)
        self._memory = MemoryStore(folder.path.parent, self.device_kind)
        self.frontier = plan.frontier(rows_filled=_rows_filled(data), source=folder.path.name)
        self.frontier.learn(self._memory.load(torch.__version__))
        self._store = TrialStore(folder.trials)
        self.micro_batches = MicroBatches(
            file_of_device(folder.path.parent, self.device_kind, "-micro-batches"),
            # On processors the number of threads decides as well.
            shape_of=lambda run: f"{self.frontier.shape(run)}, threads {plan.lanes.threads_per_worker}",
            largest=lambda run: plan.largest_micro_batch(run, self.frontier.capacity(run).num_bytes),
            swept=swept_micro_batches(sweep),
        )
        self.ledger = Ledger(
            self._store,
            frontier=self.frontier,
            scheduler=self._scheduler,
            run_of=self.run_of,
            rungs=() if plan.promotions else plan.rungs,
            run_to_end=drawn_to_run_to_the_end(stopping, num_trials=sweep.budget.trials, seed=sweep.searcher.seed),
            # What another sweep has learnt meanwhile comes back with it.
            remember=lambda seen: self.frontier.learn(self._memory.add(seen, torch.__version__)),
            size_of=lambda run: _size_of(run, data.vocabulary.size),
        )
        self._beaten: list[TrialRecord] = []
        self._dropped: set[int] = set()
        rule.restore(self.ledger.records.values())
        for record in self.ledger.records.values():
            self.frontier.learn_trial(record, self.run_of(record))
        if not sweep.start_with and not self.ledger.records:
            check_that_something_fits(plan, self.frontier)
        self._searcher = SweepSearcher(
            sweep,
            self.ledger,
            self.frontier,
            # A model that knows nothing gives every entry of the vocabulary the same probability.
            worst_loss=math.log(data.vocabulary.size),
            trial_config=self._trial_config,
            largest_micro_batch=plan.largest_micro_batch,
            budget=SweepBudget(sweep.budget, elapsed_s=wall_s, num_repeats=sweep.repeats.count(sweep.budget.trials)),
            promotions=plan.promotions,
            micro_batches=self.micro_batches,
        )

    def run_of(self, record: TrialRecord) -> RunConfig:
        """The training run behind a record."""
        return self.plan.sweep.run_config(record.settings)

    def train(self) -> None:
        """Let Tune run trials until the searcher has no more."""
        tune.Tuner(
            # Lanes hold their own processors through Train; Tune needs a demand that is never short.
            # Their owners stand on the driver's node, so that another node's loss costs a trial's workers alone.
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
                storage_path=str(self.folder.ray_state),
                callbacks=[LedgerCallback(self.ledger, self._learn_speeds)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=_MAX_LOST_LANES),
                verbose=0,
            ),
        ).fit()

    @property
    def search_ended_by(self) -> str:
        """Which limit ended the search, in words; empty while none has."""
        return self._searcher.ended_by

    def _learn_speeds(self, assignment: Assignment, speeds: tuple[MicroBatchSpeed, ...]) -> None:
        self.micro_batches.learn(RunConfig.model_validate(assignment.run), assignment.sizes_to_measure, speeds)

    def stop_paused(self) -> None:
        """Nobody is promoted any more."""
        if self.plan.promotions is None:
            return
        waiting = [record for record in self.ledger.unfinished() if record.paused_at is not None]
        reasons = [self.plan.promotions.reason(record, self.ledger.records.values()) for record in waiting]
        for record, reason in zip(waiting, reasons, strict=True):
            self.ledger.stop_paused(record.number, reason)

    def memory_in_words(self) -> Iterator[str]:
        """What is known of memory before the first trial, and which settings of a grid that rules out."""
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
        """See that not every proposal was refused.

        Raises:
            NothingFitsError: Every one was.
        """
        if not self.ledger.records and self.ledger.refused:
            check_that_something_fits(self.plan, self.frontier, nothing_ran=True)

    def settle_rest(self) -> None:
        """Trials cut off in the middle are interrupted; those that wait go on waiting."""
        for record in self.ledger.unfinished():
            if record.started_at and not record.ended_at and record.paused_at is None:
                self.ledger.settle(record.number, None)

    def keep_only_the_best_checkpoint(self, event: str, record: TrialRecord, _: Any) -> None:
        """A checkpoint is three times its model's size: of the trials that are done only those keep it that may win."""
        if event != "ended" or not record.is_done:
            return
        self.drop_beaten_checkpoints()
        # Dropped with the next one: a stopped trial writes its last checkpoint after it was told to stop.
        self._beaten = self._without_a_chance()

    def _without_a_chance(self, *, num_leaders: int | None = None) -> list[TrialRecord]:
        """Trials that are done and are none of the leaders, or none but the best, whose order repeats may change."""
        records = list(self.ledger.records.values())
        sweep = self.plan.sweep
        if num_leaders is None:
            num_leaders = sweep.repeats.leaders + 1 if sweep.repeats.count(sweep.budget.trials) else 1
        kept = {group.records[0].number for group in seed_groups(records)[:num_leaders]}
        gone = kept | self._dropped
        return [record for record in records if record.is_done and record.number not in gone]

    def drop_beaten_checkpoints(self) -> None:
        """Remove what `keep_only_the_best_checkpoint` has marked."""
        while self._beaten:
            record = self._beaten.pop()
            self._dropped.add(record.number)
            trial_folder = self._store.folder_of(record)
            drop_checkpoints(trial_folder)
            if self.at_uri is not None:
                self.at_uri.drop_checkpoints(trial_folder)

    def drop_all_but_the_winners_checkpoint(self) -> None:
        """Nothing will be trained any more."""
        self._beaten = self._without_a_chance(num_leaders=1)
        self.drop_beaten_checkpoints()

    def _trial_config(self, record: TrialRecord, run: RunConfig) -> dict[str, Any]:
        promotions = self.plan.promotions
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
            sizes_to_measure=to_measure,
            pause=None if promotions is None else promotions.pause_of(record, cooldown=run.training.cooldown),
            memory_limit_bytes=self.plan.memory_bytes,
            memory_limit_by=self.plan.sweep.resources.memory_limit_by,
            checkpoint_every_s=self.plan.sweep.resources.checkpoint_every_s,
            mirror_uri=None if self.at_uri is None else self.at_uri.trial_uri(self._store.folder_of(record)),
            driver_node=_this_node()["ray.io/node-id"],
            corpus_server=self._corpus_server,
        )
        lane = self.plan.lanes.spec(self.folder.ray_state, memory_limit_by=self.plan.sweep.resources.memory_limit_by)
        return {"number": record.number, "assignment": assignment, "lane": lane}


def _leg_name(trial: Any) -> str:
    pause = trial.config["assignment"].pause
    return f"trial-{trial.config['number']:04d}" + ("" if pause is None else f"-to-{pause.at_tokens}")


class LedgerCallback(KeptOutOfPickles, tune.Callback):
    """Passes on to the ledger what Tune hears from trials."""

    def __init__(
        self, ledger: Ledger, learn_speeds: Callable[[Assignment, tuple[MicroBatchSpeed, ...]], None] = lambda *_: None
    ) -> None:
        self._ledger, self._learn_speeds = ledger, learn_speeds

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        if "report" in result:
            self._ledger.report(trial.config["number"], result["report"])
        if "speeds" in result:
            self._learn_speeds(trial.config["assignment"], result["speeds"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._ledger.settle(trial.config["number"], trial.last_result)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._ledger.settle(trial.config["number"], None, lost=True)


def _rows_filled(data: PreparedCorpus) -> int:
    """Share of the rows of training that holds tokens, in percent."""
    return round(100 * data.train.num_tokens / (data.train.num_rows * data.train.sequence_length))


def _this_node() -> dict[str, str]:
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def _cluster_size() -> dict[str, Any]:
    nodes = list(nodes_now())
    return {
        "num_cpus": max(1, int(sum(node.get("CPU", 0) for node in nodes))),
        "num_gpus": int(sum(node.get("GPU", 0) for node in nodes)),
        "nodes": nodes,
    }


def _start_tracking(tracking: Tracking, sweep: SweepConfig, data: PreparedCorpus, folder: SweepFolder) -> None:
    tracking.start(
        name=sweep.name,
        identity=folder.identity,
        tags={"mlflow.note.content": sweep.purpose, "pretune.data": data.fingerprint},
        params=_fixed_settings(sweep),
        store=TrialStore(folder.trials),
        source=source_tags(shlex.join(sys.argv), Path.cwd()),
        datasets=dataset_inputs(data.manifest),
    )


def _fixed_settings(sweep: SweepConfig) -> dict[str, Any]:
    """Settings that all trials share, flat; what is swept is left to the children."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else name, inner)
        elif prefix not in sweep.search and value is not None:
            flat[prefix] = value

    walk("", sweep.model_dump(mode="json", exclude={"search", "start_with", "purpose"}))
    return flat


def _size_of(run: RunConfig, vocabulary_size: int) -> TrialSize:
    counts = parameter_counts(run, vocabulary_size)
    return TrialSize(training_flops_a_token(run, vocabulary_size), counts.total, counts.trainable)


def _summary(
    run: _SweepRun, *, status: str, tracking: Tracking, wall_s: float, winner: Winner = NOT_YET
) -> dict[str, Any]:
    return summarize(
        name=run.plan.sweep.name,
        identity=run.folder.identity,
        status=status,
        records=list(run.ledger.records.values()),
        refused=run.ledger.refused,
        data=data_figures(run.data),
        wall_s=wall_s,
    ) | {
        "search_ended_by": run.search_ended_by,
        "start": notes_of(run.plan.sweep),
        "space_widened": [one.reason for one in run.ledger.widenings],
        "model": winner.model,
        "micro_batches": run.micro_batches.table(),
        "samples": [sample.model_dump() for sample in winner.samples],
        "baseline": None if run.baseline is None else run.baseline.model_dump(),
        "mlflow_uri": tracking.uri,
        "mlflow_run_id": tracking.parent_id,
        "command": sys.argv,
        "git": git_state(Path.cwd()),
    }


def _write_results(run: _SweepRun, *, status: str, tracking: Tracking, wall_s: float) -> dict[str, Any]:
    records = list(run.ledger.records.values())
    folder = run.folder
    best = best_trial(records)
    winner = Winner("no trial completed")
    if best is not None:
        if run.at_uri is not None:
            run.at_uri.fetch_checkpoint(folder.trials / best.name)
        winner = export_winner(run.run_of(best), run.data, folder.trials / best.name, folder.best)
    summary = _summary(run, status=status, tracking=tracking, wall_s=wall_s, winner=winner)
    write_trials_csv(folder.path / "trials.csv", records)
    # After Ctrl-C nobody waits for the predictions that a border takes.
    found = map_frontier(run.plan.sweep, run.frontier, device=run.device_kind, with_border=status == "finished")
    write_atomically(folder.path / MAP_FILE, found.model_dump_json(indent=1) + "\n")
    # The summary says that the sweep is finished, so it comes after all that it speaks of.
    write_report(folder.path, run.plan.sweep, records, summary)
    write_summary(folder.path / "summary.json", summary)
    tracking.finish(status=status, records=ranked(records), folder=folder.path, refused=run.ledger.refused)
    return summary


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM (a cluster's way to end a job) ends a sweep as Ctrl-C does."""

    def interrupt(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not cut off the writing of results, which takes seconds."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
