"""Run one sweep, or resume it."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipeline.files.disk_room import RESERVE_BYTES
from data_pipeline.files.machine_faults import MachineFault
from data_pipeline.schema.dotted_paths import flattened
from data_pipeline.schema.settings import format_bytes
from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweeps.analysis.fairness import RemarkVerdict, num_predicted_positions, refuse_unfair, remarks
from sweeps.analysis.result_tables import ranked
from sweeps.early_stopping.rungs import rung_tokens
from sweeps.execution.changed_sweep import begin
from sweeps.execution.final_results import summary_of, write_final_results
from sweeps.execution.live_progress import Progress
from sweeps.execution.machine_halt import SweepHaltedError, halts_for_the_machine
from sweeps.execution.retried_trials import chosen_in, open_again
from sweeps.execution.running_results import RunningResults
from sweeps.execution.signals import terminated_like_interrupted, uninterrupted
from sweeps.execution.tune_run import SweepRun
from sweeps.lanes.elastic_lanes import nodes_now
from sweeps.lanes.lane import prepare_for_lanes
from sweeps.lanes.lane_planning import this_machine
from sweeps.lanes.ray_session import connect, disconnect, has_cluster
from sweeps.planning.auto_lanes import auto_lanes, expected_sweep_tokens
from sweeps.planning.disk_need import bytes_below, check_disk, disk_needs
from sweeps.planning.first_checks import check_device
from sweeps.planning.preparation import corpus_in_words
from sweeps.planning.resolved_sweep import PreparedSweep
from sweeps.planning.stage_preparation import stages_in_words
from sweeps.planning.sweep_plan import SweepPlan, plan_sweep, predictions_kept
from sweeps.planning.warm_start import notes_of, refuse_settings_of
from sweeps.records.remote_results import ResultsAtUri
from sweeps.records.result_parts import FailedPart, ResultParts
from sweeps.records.results_folder import SweepFolder, sweep_identity
from sweeps.records.retry_request import NO_RETRY, RetryRequest
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import TrialRecord, TrialStore
from sweeps.search.class_check import refuse_faulty_class
from sweeps.search.prior_trials import prior_knowledge
from sweeps.settings.sweep_config import SweepConfig
from sweeps.tasks.labelled_tasks import TaskTexts, fingerprint_of, read_tasks
from sweeps.tracking.mirrors import Mirrors, check_mirrors
from sweeps.tracking.mlflow_dataset import dataset_inputs
from sweeps.tracking.mlflow_tags import metric_tags, source_tags
from sweeps.tracking.mlflow_tracking import Tracking
from sweeps.tracking.tensorboard import TensorBoardLog


@dataclass(frozen=True)
class SweepEnd:
    """Results of one `run_sweep` call."""

    folder: SweepFolder
    status: SweepStatus
    records: tuple[TrialRecord, ...]
    summary: dict[str, Any]
    was_done_before: bool
    """True: an earlier run had finished this sweep; this one trained nothing."""
    not_tracked: str
    """Records that MLflow did not accept, as text; empty if it accepted all."""
    model_uri: str
    """The winner in MLflow's model registry; empty if this run did not register it."""
    parts_missing: tuple[FailedPart, ...] = ()
    """Parts of the results that could not be made."""
    halted_by: MachineFault | None = None
    """The fault of the machine that ended the sweep early."""


def run_sweep(
    asked: SweepConfig,
    *,
    results_folder: Path,
    console: Console,
    kept_at: str | None = None,
    view: type[Progress] = Progress,
    retry: RetryRequest = NO_RETRY,
) -> SweepEnd:
    """Run a sweep to its end; an earlier run of the same sweep is resumed.

    Args:
        asked: The sweep as its file gives it.
        results_folder: An existing, writable folder.
        kept_at: URI that stores a copy of the results; a fresh node restores them from there.
        view: Shows the running trials: Progress, or a class of its kind.
        retry: Ended trials to train again, also of a finished sweep.

    Raises:
        ResultsError, TrackingError, CorpusError, ResourcesError: A user's mistake, found before training.
    """
    check_mirrors(asked.tracking.mirror)
    has_length = asked.budget.tokens_per_trial is not None
    if has_length:
        _refuse_unfair(asked)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    refuse_settings_of(asked)
    tasks = read_tasks(asked.evaluation.tasks)
    for task in tasks:
        say(f"task     {task.in_words()}")
    if asked.needs_gpus:
        check_device(asked, num_gpus=(_connected_cluster() if has_cluster() else this_machine())["num_gpus"])
    at_uri = None if kept_at is None else ResultsAtUri(results_folder, kept_at, say=say)
    resolved = PreparedSweep(asked, results_folder, console, fetch=at_uri.fetch_prepared if at_uri else lambda _: None)
    for note in notes_of(resolved.begun):
        say(f"start    {note}")
    tracking = Tracking(results_folder, say=say)
    data = resolved.data
    console.print(f"corpus   {corpus_in_words(data)}", highlight=False, soft_wrap=True)
    epochs = asked.budget.epochs_per_trial
    if epochs is not None:
        say(f"budget   {epochs:g} epochs are {resolved.in_tokens.budget.trial_tokens:,} tokens a trial")
    if not has_length:
        _refuse_unfair(resolved.counted)
    for words in stages_in_words(resolved.stages, num_workers=asked.resources.workers_per_trial):
        say(f"stages   {words}")
    sweep, words = resolved.whole(_connected_cluster)
    if words:
        say(f"budget   {words}")
    folder = SweepFolder(results_folder, sweep, sweep_identity(sweep, data.fingerprint, fingerprint_of(tasks)))
    refuse_faulty_class(sweep, data.vocabulary.size, say=say)
    if at_uri is not None:
        at_uri.bring_back(folder.path)
    earlier, retried = folder.summary(say), chosen_in(folder, retry)
    is_finished = earlier is not None and earlier["status"] == SweepStatus.FINISHED
    if earlier is not None and is_finished and not earlier.get("parts_missing") and not retried.records:
        for note in retried.notes:
            say(f"retry    {note}")
        records = tuple(TrialStore(folder.trials, say=say).load_all())
        _start_tracking(tracking, sweep, data, folder)
        # A tracking server that was unreachable at the end now receives the rest; a new one receives everything.
        if not tracking.is_complete:
            refused = TrialStore(folder.trials).load_refusals()
            tracking.finish(status=SweepStatus.FINISHED, records=ranked(records), folder=folder.path, refused=refused)
        Mirrors(sweep.tracking.mirror, folder.path, say=say).close()
        return SweepEnd(
            folder,
            SweepStatus.FINISHED,
            records,
            earlier,
            was_done_before=True,
            not_tracked=tracking.not_taken,
            model_uri=tracking.model_uri,
        )
    folder.create()
    with (
        folder.locked(say),
        at_uri.following(folder.path, data.folder) if at_uri else nullcontext(),
        predictions_kept(results_folder, say=lambda words: say(f"memory   {words}")),
    ):
        results = results_folder if kept_at is None else kept_at
        store = TrialStore(folder.trials, say=say)
        begin(
            *(folder, sweep, data.fingerprint, store),
            results=results,
            say=say,
            tasks_fingerprint=fingerprint_of(tasks),
        )
        open_again(folder, retry, summary=earlier, at_uri=at_uri, say=say)
        return _run(sweep, resolved, folder, tracking, console, earlier, say, at_uri, tasks, view)


def _refuse_unfair(sweep: SweepConfig) -> None:
    refuse_unfair(remarks(sweep, rungs=rung_tokens(sweep.early_stopping, sweep.budget.trial_tokens)))


def _run(
    sweep: SweepConfig,
    resolved: PreparedSweep,
    folder: SweepFolder,
    tracking: Tracking,
    console: Console,
    earlier: dict[str, Any] | None,
    say: Callable[[str], None],
    at_uri: ResultsAtUri | None,
    tasks: Sequence[TaskTexts],
    view: type[Progress],
) -> SweepEnd:
    prior = prior_knowledge(sweep, folder.path.parent, data_fingerprint=resolved.data.fingerprint)
    started_at = time.monotonic()
    wall_s_before = 0.0 if earlier is None else earlier["wall_s"]
    cluster, data, vocabulary_size = _connected_cluster(), resolved.data, resolved.vocabulary_size
    auto = auto_lanes(sweep, cluster=cluster, vocabulary_size=vocabulary_size, results_folder=folder.path.parent)
    prepare_for_lanes()
    plan = plan_sweep(sweep, vocabulary_size=vocabulary_size, auto=auto, **cluster)
    console.print(f"trials   {plan.lanes.reason}; results in {folder.path}", highlight=False, soft_wrap=True)

    for doubt in check_disk(disk_needs(plan, folder.path.parent, there_bytes=bytes_below(folder.path))):
        say(f"disk     {doubt}")

    def wall_s() -> float:
        return wall_s_before + time.monotonic() - started_at

    run = SweepRun(plan, resolved, folder, wall_s=wall_s, say=say, at_uri=at_uri, tasks=tasks, prior=prior)
    num_predicted = num_predicted_positions(sweep, data.manifest)
    for remark in remarks(sweep, rungs=plan.rungs, num_predicted=num_predicted):
        if remark.verdict is not RemarkVerdict.FAIR:
            console.print(f"{remark.verdict:<8} {remark}", highlight=False, markup=False, soft_wrap=True)
    for words in () if prior is None else prior.in_words(list(run.ledger.records.values())):
        say(f"search   {words}")
    for combinations in sweep.partly_invalid():
        say(f"search   {combinations}; the others are never launched")
    for words in run.memory_in_words():
        console.print(f"memory   {words}", highlight=False, markup=False, soft_wrap=True)
    _start_tracking(tracking, sweep, data, folder)
    events = TensorBoardLog(folder.trials)
    mirrors = Mirrors(sweep.tracking.mirror, folder.path, say=say)
    progress = view(
        console,
        lambda: list(run.ledger.records.values()),
        num_trials=sweep.num_trials + sweep.num_repeats,
        tokens_per_trial=sweep.budget.trial_tokens,
        num_refused=lambda: len(run.ledger.refused),
        most_tokens=sweep.max_tokens + sweep.num_repeats * sweep.budget.trial_tokens,
        expected_tokens=None if sweep.stages else expected_sweep_tokens(sweep),
        stopped_count_in_full=sweep.early_stopping.method != "full-length",
    )
    so_far = RunningResults(
        folder.path,
        sweep,
        lambda: (
            list(run.ledger.records.values()),
            summary_of(run, status=SweepStatus.RUNNING, tracking=tracking, wall_s=wall_s()),
        ),
    )
    run.ledger.listeners += [
        tracking.on_event,
        events.on_event,
        mirrors.on_event,
        run.checkpoints.on_event,
        so_far.on_event,
        progress.on_event,
    ]
    status, halted_by = SweepStatus.FINISHED, None
    with progress, terminated_like_interrupted():
        try:
            with halts_for_the_machine(folder.path):
                run.train()
                run.stop_paused()
        except KeyboardInterrupt:
            status = SweepStatus.INTERRUPTED
        except SweepHaltedError as halted:
            status, halted_by = SweepStatus.INTERRUPTED, _with_the_rest(halted.fault, plan, folder)
    parts = ResultParts(folder.path)
    with uninterrupted():
        run.settle_rest(reason="" if halted_by is None else str(halted_by))
        parts.attempt("the memory observations", run.keep_memory_knowledge)
        if status is SweepStatus.FINISHED and run.ledger.unfinished():
            status = SweepStatus.INCOMPLETE
        parts.attempt("the events of TensorBoard", events.close)
        disconnect()
        checkpoints = run.checkpoints
        drop = checkpoints.drop_all_but_the_winners if status is SweepStatus.FINISHED else checkpoints.drop_beaten
        parts.attempt("the removal of checkpoints", drop)
        so_far.close()
        not_mirrored = parts.make("the end of the mirrors", mirrors.close, lambda _: {})
        summary = write_final_results(
            run,
            status=status,
            tracking=tracking,
            wall_s=wall_s(),
            parts=parts,
            halted_by=halted_by,
            not_mirrored=not_mirrored,
        )
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
        parts_missing=tuple(parts.failed),
        halted_by=halted_by,
    )


def _with_the_rest(fault: MachineFault, plan: SweepPlan, folder: SweepFolder) -> MachineFault:
    """A lack of room in the results folder, with the room that the rest of the sweep needs."""
    if not fault.is_about_room or not Path(fault.place).is_relative_to(folder.path.parent):
        return fault
    try:
        need = disk_needs(plan, folder.path.parent, there_bytes=bytes_below(folder.path))[0]
    except OSError:
        return fault
    remedy = f"{fault.remedy}: the rest of the sweep needs about {format_bytes(need.needed_bytes + RESERVE_BYTES)}"
    return replace(fault, remedy=remedy)


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
        tags={"mlflow.note.content": sweep.purpose, "pretune.data": data.fingerprint} | metric_tags(sweep.ranked_by),
        params=_fixed_settings(sweep),
        store=TrialStore(folder.trials),
        source=source_tags(shlex.join(sys.argv), Path.cwd()),
        datasets=dataset_inputs(data.manifest),
    )


def _fixed_settings(sweep: SweepConfig) -> dict[str, Any]:
    """Settings that all trials share, by dotted path; the child runs record the swept ones."""
    values = sweep.model_dump(mode="json", exclude={"search", "start_with", "purpose", "trust_code", "tracking"})
    return {
        path: value
        for path, value in flattened(values)
        if path not in sweep.search and value is not None and value != {}
    }
