"""The baseline of a sweep: the best trial of an earlier sweep, or any run of MLflow."""

from pathlib import Path
from typing import Any

from data_pipeline.schema.redaction import redact_url
from data_pipeline.schema.settings import Settings
from data_pipeline.schema.user_errors import InputFault
from sweeps.analysis.result_tables import trial_row
from sweeps.records.results_folder import read_summary
from sweeps.records.trial_records import LOSS, LOSS_COLUMN, TrialRecord

_NOT_SETTINGS = frozenset(trial_row(TrialRecord(number=1, settings={}), 1))


class Baseline(Settings):
    """Loss, settings and speed of a baseline."""

    name: str
    loss: float
    """Holdout loss in nats per predicted token."""
    settings: dict[str, Any]
    tokens: int | None = None
    tokens_per_s: float | None = None
    data_fingerprint: str | None = None
    """Fingerprint of its prepared corpus. Losses on another corpus are losses of other tokens."""


def read_baseline(named: str, results_folder: Path) -> Baseline:
    """The baseline of this name.

    Args:
        named: A sweep's results folder, or a run of MLflow as `runs:/<run id>`.
        results_folder: The folder with the MLflow store, unless MLFLOW_TRACKING_URI names a server.

    Raises:
        InputFault: The folder or run does not exist, or has no holdout loss.
    """
    return _of_run(named, results_folder) if named.startswith("runs:/") else _of_folder(Path(named))


def _of_folder(folder: Path) -> Baseline:
    summary = read_summary(folder, needs=("best", "data"))
    best = summary["best"]
    if best is None:
        raise InputFault(f"baseline: {folder} has no completed trial; name a sweep that has one")
    try:
        return Baseline(
            name=f"{best['trial']} of {folder.resolve().name}",
            loss=best[LOSS_COLUMN],
            # Columns with a dotted path are settings; the others are results.
            settings={name: value for name, value in best.items() if "." in name and name not in _NOT_SETTINGS},
            tokens=best["tokens"],
            tokens_per_s=best["tokens_per_s"],
            data_fingerprint=summary["data"]["fingerprint"],
        )
    except (KeyError, ValueError) as cause:
        raise InputFault(
            f"baseline: the best trial in {folder / 'summary.json'} is damaged: {cause}; name another sweep"
        ) from cause


def _of_run(named: str, results_folder: Path) -> Baseline:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from sweeps.tracking.final_values import FINAL_LOSS
    from sweeps.tracking.mlflow_store import make_quick, store_uri

    make_quick()
    uri = store_uri(results_folder)
    try:
        client = MlflowClient(uri)
        run = client.get_run(named.removeprefix("runs:/"))
        parent = run.data.tags.get("mlflow.parentRunId")
        tags = client.get_run(parent).data.tags if parent else run.data.tags
    except (MlflowException, OSError) as error:
        raise InputFault(f"baseline: {named} is not in MLflow at {redact_url(uri)}: {error}") from error
    metrics = run.data.metrics
    loss = metrics.get(FINAL_LOSS, metrics.get(LOSS))
    if loss is None:
        raise InputFault(f"baseline: {named} has neither the metric {FINAL_LOSS} nor {LOSS}; name a trial of a sweep")
    tokens = metrics.get("final/tokens")
    return Baseline(
        name=f"{run.info.run_name} ({named})",
        loss=loss,
        settings=dict(run.data.params) if parent else {},
        tokens=None if tokens is None else int(tokens),
        tokens_per_s=metrics.get("final/tokens_per_s"),
        data_fingerprint=tags.get("pretune.data"),
    )
