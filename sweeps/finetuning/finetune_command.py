"""Runs a fine-tuning for classification, from the request to its files, report and MLflow runs."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipeline.files.whole_files import write_atomically
from data_pipeline.schema.redaction import redact_url
from sweeps.finetuning.classifier_results import METRICS_FILE, write_files
from sweeps.finetuning.classifier_training import drop_checkpoints, plan_finetuning, train_classifiers
from sweeps.finetuning.finetune_file import RESOLVED_FILE
from sweeps.finetuning.finetune_report import print_data, write_page
from sweeps.finetuning.finetune_request import FinetuneRequest, model_and_rows
from sweeps.finetuning.finetune_tracking import record
from sweeps.records.printed_commands import command_line
from sweeps.records.results_folder import check_writable
from sweeps.tracking.mlflow_store import MlflowStore, TrackingError
from sweeps.tracking.mlflow_tags import source_tags


def carry_out(
    request: FinetuneRequest, *, results_folder: Path, target: Path | None, console: Console
) -> tuple[dict[str, Any], Path]:
    """Run a fine-tuning, or the rest of an interrupted one.

    Args:
        target: Output folder. None: a folder of its own in the results folder.

    Returns:
        The content of `metrics.json`, and the output folder.

    Raises:
        InputFault: The model or the rows are invalid; raised before any training.
    """
    with model_and_rows(request, results_folder) as (trained, found):
        plan = plan_finetuning(
            trained,
            request.settings,
            found,
            weights_of=request.weights_of,
            table=redact_url(request.table),
            results_folder=results_folder,
            name=request.name,
            target=target,
            names=request.names,
        )
        if request.resolved is not None:
            write_atomically(plan.folder / RESOLVED_FILE, request.resolved)
        print_data(plan, console)
        if plan.is_done:
            console.print("the fine-tuning was already finished; nothing was trained", style="bold")
            return json.loads((plan.folder / METRICS_FILE).read_text(encoding="utf-8")), plan.folder
        check_writable(results_folder)
        # An unusable store fails here and not after the training.
        store = MlflowStore(results_folder, say=lambda words: console.print(words, markup=False, soft_wrap=True))
        end = train_classifiers(plan, console)
        write_page(end)
        figures = write_files(end)
        drop_checkpoints(end.folder)
        try:
            record(store, end, tags=source_tags(command_line(*sys.argv[1:]), Path.cwd()))
        except TrackingError as error:
            console.print(f"not recorded in MLflow: {error}", style="red", markup=False, soft_wrap=True)
        return figures, plan.folder
