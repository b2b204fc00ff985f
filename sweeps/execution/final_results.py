"""Result files of a sweep: the summary while it runs, and all files at its end.

Each file is a part of its own: one that cannot be made is named, and all others are written.
"""

import sys
from collections.abc import Mapping
from typing import Any

from data_pipeline.files.machine_faults import MachineFault
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.schema.redaction import redact
from sweeps.analysis.full_length import predicted_best
from sweeps.analysis.result_tables import best_trial, ended_by, ranked, summarize, write_summary, write_trials_csv
from sweeps.analysis.yardsticks import figures
from sweeps.execution.tune_run import SweepRun
from sweeps.memory_knowledge.frontier_map import map_frontier
from sweeps.planning.preparation import data_figures
from sweeps.planning.warm_start import notes_of
from sweeps.records.result_parts import ResultParts
from sweeps.records.results_folder import MAP_FILE
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import LOSS_COLUMN, TrialRecord
from sweeps.report.report import write_report
from sweeps.tasks.labelled_tasks import figures_of
from sweeps.tracking.mlflow_tracking import Tracking
from sweeps.trained_models.winner_export import NOT_YET, Winner, export_winner


def summary_of(
    run: SweepRun, *, status: SweepStatus, tracking: Tracking, wall_s: float, winner: Winner = NOT_YET
) -> dict[str, Any]:
    """Content of summary.json at this moment, for scripts.

    Args:
        status: RUNNING, or the final status.
        wall_s: Seconds over all runs of this sweep, resumed ones included.
    """
    best = best_trial(list(run.ledger.records.values()))
    return summarize(
        name=run.plan.sweep.name,
        identity=run.folder.identity,
        status=status,
        records=list(run.ledger.records.values()),
        refused=run.ledger.refused,
        data=data_figures(run.data),
        wall_s=wall_s,
    ) | {
        "search_ended_by": ended_by(
            status, run.search_ended_by, list(run.ledger.records.values()), most=run.plan.sweep.num_trials
        ),
        "metric": run.plan.sweep.ranked_by.model_dump(),
        "tasks": figures_of(run.tasks),
        "yardsticks": figures(run.yardsticks, None if best is None else best.loss),
        "start": notes_of(run.plan.sweep),
        "search_from": run.prior_in_words(),
        "space_widened": [one.reason for one in run.ledger.widenings],
        "model": winner.model,
        "micro_batches": run.micro_batches.table(),
        "samples": [sample.model_dump() for sample in winner.samples],
        "baseline": None if run.baseline is None else run.baseline.model_dump(),
        "mlflow_uri": tracking.address,
        "mlflow_run_id": tracking.parent_id,
        "command": [redact(argument) for argument in sys.argv],
        "git": run.git,
        "hardware": run.hardware | {"lanes": run.plan.lanes.reason},
    }


def write_final_results(
    run: SweepRun,
    *,
    status: SweepStatus,
    tracking: Tracking,
    wall_s: float,
    parts: ResultParts,
    halted_by: MachineFault | None = None,
    not_mirrored: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Export the winner, write tables, map, report and summary, and close MLflow's runs.

    Args:
        parts: Receives the parts that cannot be made; the summary names them.
        halted_by: Fault of the machine that ended the sweep. Then no model is exported: it would take the last room.
        not_mirrored: Incomplete trials by mirror.

    Returns:
        The content of summary.json.
    """
    records = list(run.ledger.records.values())
    folder = run.folder.path
    if halted_by is not None:
        winner = Winner("not written: the sweep was interrupted")
    else:
        winner = parts.make("the winner's model", lambda: _exported(run, records), lambda failed: Winner(str(failed)))
    summary = summary_of(run, status=status, tracking=tracking, wall_s=wall_s, winner=winner)

    if not_mirrored:
        summary["not_mirrored"] = dict(not_mirrored)
    if run.plan.sweep.early_stopping.method == "full-length":
        summary["predicted"] = parts.make("the predicted best settings", lambda: _predicted(run), lambda _: None)

    def write_map() -> None:
        # Skip the memory frontier after Ctrl-C: its predictions take time.
        with_points = status is SweepStatus.FINISHED
        found = map_frontier(run.plan.sweep, run.frontier, device=run.device_kind, with_points=with_points)
        write_atomically(folder / MAP_FILE, found.model_dump_json(indent=1) + "\n")

    def finish_tracking() -> None:
        tracking.finish(status=status, records=ranked(records), folder=folder, refused=run.ledger.refused)

    def end_of_summary() -> None:
        # Written last: its status says that all other files are complete.
        summary["parts_missing"] = [str(one) for one in parts.failed]
        write_summary(folder / "summary.json", summary)

    parts.attempt("trials.csv", lambda: write_trials_csv(folder / "trials.csv", records))
    parts.attempt(MAP_FILE, write_map)
    write_report(folder, run.plan.sweep, records, summary, parts)
    parts.attempt("summary.json", end_of_summary)
    num_failed = len(parts.failed)
    parts.attempt("the end of the sweep in MLflow", finish_tracking)
    if len(parts.failed) > num_failed:
        parts.attempt("summary.json", end_of_summary)
    return summary


def _predicted(run: SweepRun) -> dict[str, Any] | None:
    found = predicted_best(run.plan.sweep, run.ledger.records.values(), run.plan.rungs)
    if found is None:
        return None
    return {
        "settings": found.settings,
        LOSS_COLUMN: found.loss,
        "half_width_95": found.half_width,
        "tokens": found.tokens,
    }


def _exported(run: SweepRun, records: list[TrialRecord]) -> Winner:
    best = best_trial(records)
    if best is None:
        return Winner("no trial completed")
    trial_folder = run.folder.trials / best.name
    if run.at_uri is not None:
        run.at_uri.fetch_checkpoint(trial_folder)
    return export_winner(run.run_of(best), run.data, trial_folder, run.folder.best)
