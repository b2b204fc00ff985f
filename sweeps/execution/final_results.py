"""Result files of a sweep: the summary while it runs, and all files at its end."""

import sys
from typing import Any

from data_pipeline.schema.redaction import redact
from data_pipeline.schema.whole_files import write_atomically
from sweeps.analysis.result_tables import best_trial, ended_by, ranked, summarize, write_summary, write_trials_csv
from sweeps.execution.tune_run import SweepRun
from sweeps.memory_knowledge.frontier_map import map_frontier
from sweeps.planning.preparation import data_figures
from sweeps.planning.warm_start import notes_of
from sweeps.records.results_folder import MAP_FILE
from sweeps.records.sweep_status import SweepStatus
from sweeps.report.report import write_report
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
        "start": notes_of(run.plan.sweep),
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


def write_final_results(run: SweepRun, *, status: SweepStatus, tracking: Tracking, wall_s: float) -> dict[str, Any]:
    """Export the winner, write tables, map, report and summary, and close MLflow's runs.

    Returns:
        The content of summary.json.
    """
    records = list(run.ledger.records.values())
    folder = run.folder
    best = best_trial(records)
    winner = Winner("no trial completed")
    if best is not None:
        if run.at_uri is not None:
            run.at_uri.fetch_checkpoint(folder.trials / best.name)
        winner = export_winner(run.run_of(best), run.data, folder.trials / best.name, folder.best)
    summary = summary_of(run, status=status, tracking=tracking, wall_s=wall_s, winner=winner)
    write_trials_csv(folder.path / "trials.csv", records)
    # Skip the memory frontier after Ctrl-C: its predictions take time.
    found = map_frontier(
        run.plan.sweep, run.frontier, device=run.device_kind, with_points=status is SweepStatus.FINISHED
    )
    write_atomically(folder.path / MAP_FILE, found.model_dump_json(indent=1) + "\n")
    # Write the summary last: its status says that all other files are complete.
    write_report(folder.path, run.plan.sweep, records, summary)
    write_summary(folder.path / "summary.json", summary)
    tracking.finish(status=status, records=ranked(records), folder=folder.path, refused=run.ledger.refused)
    return summary
