"""Run one sweep, or resume it."""

import shlex
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweeps.analysis.fairness import num_predicted_positions, refuse_unfair, remarks
from sweeps.analysis.result_tables import ranked
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.execution.changed_sweep import begin
from sweeps.execution.final_results import summary_of, write_final_results
from sweeps.execution.live_progress import Progress
from sweeps.execution.running_results import RunningResults
from sweeps.execution.signals import terminated_like_interrupted, uninterrupted
from sweeps.execution.tune_run import SweepRun
from sweeps.lanes.elastic_lanes import nodes_now
from sweeps.lanes.lane import prepare_for_lanes
from sweeps.lanes.ray_session import connect
from sweeps.planning.auto_lanes import auto_lanes
from sweeps.planning.epochs import with_tokens_of_epochs
from sweeps.planning.preparation import corpus_in_words, prepare_with_progress
from sweeps.planning.shortened_budget import with_shortened_trials
from sweeps.planning.stage_preparation import prepare_stages, stages_in_words, with_tokens_of_stages
from sweeps.planning.sweep_plan import plan_sweep
from sweeps.planning.warm_start import notes_of, with_initial_weights
from sweeps.records.remote_results import ResultsAtUri
from sweeps.records.results_folder import SweepFolder, sweep_identity
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.settings.sweep_config import SweepConfig
from sweeps.tracking.mlflow_dataset import dataset_inputs
from sweeps.tracking.mlflow_tags import source_tags
from sweeps.tracking.mlflow_tracking import Tracking
from sweeps.tracking.tensorboard import TensorBoardLog


@dataclass(frozen=True)
class SweepEnd:
    """Results of one `run_sweep` call."""

    folder: SweepFolder
    status: str
    """`finished`; `interrupted` by the user; `incomplete` if trials were given up after they lost their workers."""
    records: tuple[TrialRecord, ...]
    summary: dict[str, Any]
    was_done_before: bool
    """True: an earlier run had finished this sweep; this one trained nothing."""
    not_tracked: str
    """Records that MLflow did not accept, as text; empty if it accepted all."""
    model_uri: str
    """The winner in MLflow's model registry; empty if this run did not register it."""


def run_sweep(sweep: SweepConfig, *, results_folder: Path, console: Console, kept_at: str | None = None) -> SweepEnd:
    """Run a sweep to its end; an earlier run of the same sweep is resumed.

    Args:
        results_folder: An existing, writable folder.
        kept_at: URI that stores a copy of the results; a fresh node restores them from there.

    Raises:
        ResultsError, TrackingError, CorpusError, ResourcesError: A user's mistake, found before training.
    """
    has_epochs = sweep.budget.epochs_per_trial is not None
    if not has_epochs:
        _refuse_unfair(sweep)

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
    if has_epochs:
        epochs, sweep = sweep.budget.epochs_per_trial, with_tokens_of_epochs(sweep, data)
        say(f"budget   {epochs:g} epochs are {sweep.budget.tokens_per_trial:,} tokens a trial")
        _refuse_unfair(sweep)
    stages = prepare_stages(sweep, results_folder, console)
    sweep = with_tokens_of_stages(sweep, stages)
    for words in stages_in_words(stages, num_workers=sweep.resources.workers_per_trial):
        say(f"stages   {words}")
    sweep, words = with_shortened_trials(
        sweep, cluster=_connected_cluster, vocabulary_size=data.vocabulary.size, results_folder=results_folder
    )
    if words:
        say(f"budget   {words}")
    folder = SweepFolder(results_folder, sweep, sweep_identity(sweep, data.fingerprint))
    if at_uri is not None:
        at_uri.bring_back(folder.path)
    earlier = folder.summary()
    if earlier is not None and earlier["status"] == "finished":
        records = tuple(TrialStore(folder.trials).load_all())
        _start_tracking(tracking, sweep, data, folder)
        # A tracking server that was unreachable at the end now receives the rest; a new one receives everything.
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


def _refuse_unfair(sweep: SweepConfig) -> None:
    refuse_unfair(remarks(sweep, rungs=rung_tokens(sweep.early_stopping, sweep.budget.tokens_per_trial)))


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
    cluster, vocabulary_size = _connected_cluster(), data.vocabulary.size
    auto = auto_lanes(sweep, cluster=cluster, vocabulary_size=vocabulary_size, results_folder=folder.path.parent)
    prepare_for_lanes()
    plan = plan_sweep(sweep, vocabulary_size=vocabulary_size, auto=auto, **cluster)
    console.print(f"trials   {plan.lanes.reason}; results in {folder.path}", highlight=False, soft_wrap=True)

    def wall_s() -> float:
        return wall_s_before + time.monotonic() - started_at

    run = SweepRun(plan, data, folder, wall_s=wall_s, say=say, at_uri=at_uri)
    num_predicted = num_predicted_positions(sweep, data.manifest)
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
            summary_of(run, status="running", tracking=tracking, wall_s=wall_s()),
        ),
    )
    run.ledger.listeners += [
        tracking.on_event,
        events.on_event,
        run.checkpoints.on_event,
        so_far.on_event,
        progress.on_event,
    ]
    status = "finished"
    with progress, terminated_like_interrupted():
        try:
            run.train()
            run.stop_paused()
        except KeyboardInterrupt:
            status = "interrupted"
    with uninterrupted():
        run.settle_rest()
        if status == "finished" and run.ledger.unfinished():
            status = "incomplete"
        events.close()
        ray.shutdown()
        if status == "finished":
            run.checkpoints.drop_all_but_the_winners()
        else:
            run.checkpoints.drop_beaten()
        so_far.close()
        summary = write_final_results(run, status=status, tracking=tracking, wall_s=wall_s())
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


def _connected_cluster() -> dict[str, Any]:
    connect()
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
    """Settings that all trials share, by dotted path; the child runs record the swept ones."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else name, inner)
        elif prefix not in sweep.search and value is not None:
            flat[prefix] = value

    walk("", sweep.model_dump(mode="json", exclude={"search", "start_with", "purpose"}))
    return flat
