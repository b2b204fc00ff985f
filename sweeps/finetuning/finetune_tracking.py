"""Records a fine-tuning in MLflow: one run with the results and files, and a nested run for each training."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mlflow.entities import Metric, Param

from sweeps.finetuning.classifier_results import METRICS_FILE, MODEL_FOLDER, ClassifierRun, FinetuneResult
from sweeps.finetuning.finetune_file import RESOLVED_FILE
from sweeps.tracking.mlflow_store import MlflowStore

_FILES = (METRICS_FILE, "predictions.csv", "report.html", "confusion.svg", "rejects.jsonl", RESOLVED_FILE)
_MOST_CHARACTERS = 6000
"""MLflow's limit for the value of a parameter."""


def record(store: MlflowStore, end: FinetuneResult, *, tags: Mapping[str, str]) -> str:
    """Record a fine-tuning; returns the id of its run.

    Args:
        tags: Tags with code and command.

    Raises:
        TrackingError: The store no longer answers.
    """
    with store.explained():
        parent = _create(store, end.folder.name, {**tags, "pretune.kind": "finetune"})
        settings = {name: value for name, value in asdict(end.settings).items() if value not in (None, (), "")}
        _log(store, parent, settings | {"pretrained_model": end.weights_of, "table": end.table}, _final(end))
        for run in end.runs:
            child = _create(store, run.name, {**tags, "pretune.kind": "finetune-run", "mlflow.parentRunId": parent})
            chosen = {name: getattr(run, name) for name in ("start", "learning_rate", "batch_size", "epochs", "seed")}
            _log(store, child, chosen, _of_run(run))
            store.client.set_terminated(child, "FINISHED" if run.outcome == "completed" else "FAILED")
        for name in _FILES:
            if (end.folder / name).is_file():
                store.client.log_artifact(parent, str(end.folder / name))
        if (end.folder / MODEL_FOLDER).is_dir():
            store.client.log_artifacts(parent, str(end.folder / MODEL_FOLDER), artifact_path="model")
        store.client.set_terminated(parent, "FINISHED")
    return parent


def _create(store: MlflowStore, name: str, tags: Mapping[str, str]) -> str:
    return str(store.client.create_run(store.experiment_id, run_name=name, tags=dict(tags)).info.run_id)


def _log(store: MlflowStore, run_id: str, params: Mapping[str, Any], metrics: list[Metric]) -> None:
    shown = [Param(name, str(value)[:_MOST_CHARACTERS]) for name, value in params.items()]
    store.client.log_batch(run_id, metrics=metrics, params=shown)


def _final(end: FinetuneResult) -> list[Metric]:
    kept, run = end.pretrained.metrics, end.pretrained.run
    values = {
        "final/accuracy": kept.accuracy,
        "final/macro_f1": kept.macro_f1,
        "final/holdout_loss_nats_per_row": run.loss,
        "baseline/majority_accuracy": end.majority.accuracy,
        "baseline/majority_macro_f1": end.majority.macro_f1,
    }
    if end.scratch is not None:
        values["baseline/from_scratch_accuracy"] = end.scratch.metrics.accuracy
        values["baseline/from_scratch_macro_f1"] = end.scratch.metrics.macro_f1
    return _metrics(values, step=run.tokens)


def _of_run(run: ClassifierRun) -> list[Metric]:
    """Every evaluation on the token axis, and the best epoch."""
    found = []
    for report in run.evaluations:
        values = {name: value for name, value in report.items() if name.startswith(("holdout/", "train/", "memory/"))}
        found += _metrics(values | {"epoch": report["epoch"]}, step=int(report["tokens"]))
    if run.evaluations:
        best = {"final/accuracy": run.accuracy, "final/macro_f1": run.macro_f1, "final/best_epoch": run.best_epoch}
        found += _metrics(best | {"final/holdout_loss_nats_per_row": run.loss}, step=run.tokens)
    return found


def _metrics(values: Mapping[str, float], *, step: int) -> list[Metric]:
    now_ms = int(time.time() * 1000)
    return [Metric(name, float(value), now_ms, step) for name, value in values.items() if math.isfinite(value)]
