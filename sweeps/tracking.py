"""MLflow: one parent run a sweep, one child run a trial, metrics on the token axis.

A run's identity is its sweep and trial number, kept as tags, so a sweep that goes on adds to the runs there are.
"""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_pipeline.input_fault import InputFault
from sweeps.outcomes import Outcome
from sweeps.trial_records import TrialRecord

EXPERIMENT = "pretune"
FINAL_LOSS = "final/holdout_loss_nats_per_token"
"""Metric by which the runs table and the compare page rank trials."""

_MAX_METRICS = 1000
"""MLflow's limits for one batch and one parameter value."""
_MAX_PARAMS = 100
_MAX_PARAM_CHARACTERS = 6000

_STATUS = {
    Outcome.COMPLETED: "FINISHED",
    Outcome.STOPPED: "FINISHED",
    Outcome.INFEASIBLE: "FINISHED",
    Outcome.DIVERGED: "FAILED",
    Outcome.INTERRUPTED: "KILLED",
    Outcome.FAILED: "FAILED",
}


class TrackingError(InputFault):
    """The MLflow store cannot be used; the message says where it is and what to do."""


def store_uri(results_folder: Path) -> str:
    """Where runs are recorded: the server of MLFLOW_TRACKING_URI, or a SQLite file next to the results."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results_folder.absolute() / 'mlflow.db'}"


class Tracking:
    """The MLflow runs of one sweep."""

    def __init__(self, results_folder: Path) -> None:
        """Open the store, and fail now rather than after hours of training.

        Raises:
            TrackingError: The store does not answer or cannot be written.
        """
        # MLflow sends usage data unless told not to, and reports each table of a new SQLite file.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.uri = store_uri(results_folder)
        patience = _set_patience(timeout_s=5, retries=1)
        try:
            self._client = MlflowClient(self.uri)
            self._experiment_id = self._find_or_create_experiment(results_folder)
        except (MlflowException, OSError, ValueError) as error:
            raise TrackingError(
                f"MLflow at {_without_password(self.uri)} cannot be used: {_first_line(error)}. Start that server, or "
                "unset MLFLOW_TRACKING_URI to record in a file next to the results."
            ) from error
        finally:
            _restore(patience)
        self._parent_id = ""
        self._runs: dict[int, str] = {}
        self._last_tokens: dict[int, float] = {}

    def start(self, *, name: str, identity: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        """Find or create the parent run and the children there are.

        Args:
            params: Settings that all trials share; they go to the parent, so that children show only what differs.
        """
        self._name, self._identity = name, identity
        found = self._find(f"tags.`pretune.sweep` = '{identity}' and tags.`pretune.kind` = 'sweep'")
        self._parent_id = found[0].info.run_id if found else self._create(name, "sweep")
        for run in self._find(f"tags.`mlflow.parentRunId` = '{self._parent_id}'"):
            self._runs[int(run.data.tags["pretune.trial"])] = run.info.run_id
        if found:
            self._client.update_run(self._parent_id, status="RUNNING")
        else:
            self._client.log_batch(self._parent_id, params=_as_params(params), tags=_as_tags(tags))

    @property
    def parent_id(self) -> str:
        """Run id of the sweep."""
        return self._parent_id

    def on_event(self, event: str, record: TrialRecord, report: Mapping[str, float] | None) -> None:
        """A ledger listener: `started`, `report`, `ended`."""
        run_id = self._child(record)
        if event == "started":
            self._client.update_run(run_id, status="RUNNING")
        elif event == "report" and report is not None:
            self._log_metrics(run_id, report, step=int(report["tokens"]))
        elif event == "ended":
            self._end(run_id, record)

    def finish(self, *, status: str, records: Sequence[TrialRecord], folder: Path) -> None:
        """Close the parent run with the ranking and the files that a reader wants.

        Args:
            records: Best first.
            folder: The sweep's results folder; its files and the winner become artifacts of the parent run.
        """
        for rank, record in enumerate(records, start=1):
            self._client.log_batch(self._child(record), metrics=[_metric("final/rank", rank, record.tokens)])
        best = records[0] if records and records[0].outcome is Outcome.COMPLETED else None
        if best is not None and best.loss is not None:
            self._log_metrics(self._parent_id, {FINAL_LOSS: best.loss} | best.metrics, step=best.tokens)
            self._client.set_tag(self._parent_id, "pretune.best_trial", best.name)
        for name in ("sweep.yaml", "trials.csv", "summary.json", "report.html", "EXPERIMENT.md"):
            if (folder / name).exists():
                self._client.log_artifact(self._parent_id, str(folder / name))
        if (folder / "best").exists():
            self._client.log_artifacts(self._parent_id, str(folder / "best"), artifact_path="best")
        self._client.set_terminated(self._parent_id, "FINISHED" if status == "finished" else "KILLED")

    def _find_or_create_experiment(self, results_folder: Path) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        # A server knows where its artifacts go; a local SQLite file does not.
        is_local = self.uri.startswith("sqlite:")
        location = (results_folder.absolute() / "mlartifacts").as_uri() if is_local else None
        # Without this tag MLflow 3 opens the experiment on its pages for agents and prompts.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(self._client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))
        except MlflowException:
            # Another sweep that starts at the same time was first.
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def _find(self, query: str) -> list[Any]:
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment_id], query, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _create(self, name: str, kind: str, tags: Mapping[str, str] | None = None) -> str:
        all_tags = {"pretune.sweep": self._identity, "pretune.kind": kind, **(tags or {})}
        run = self._client.create_run(self._experiment_id, run_name=name, tags=all_tags)
        return str(run.info.run_id)

    def _child(self, record: TrialRecord) -> str:
        if record.number not in self._runs:
            tags = {"mlflow.parentRunId": self._parent_id, "pretune.trial": str(record.number)}
            run_id = self._create(record.name, "trial", tags | {"pretune.chosen_by": record.chosen_by})
            self._client.log_batch(run_id, params=_as_params(record.settings))
            self._runs[record.number] = run_id
        return self._runs[record.number]

    def _end(self, run_id: str, record: TrialRecord) -> None:
        outcome = record.outcome or Outcome.INTERRUPTED
        final = {
            FINAL_LOSS: record.loss,
            "final/best_holdout_loss_nats_per_token": record.best_loss,
            "final/tokens": float(record.tokens),
            "final/training_s": record.training_s,
            "final/tokens_per_s": record.tokens_per_s,
            "memory/predicted_peak_bytes": record.predicted_peak_memory_bytes,
            "memory/measured_peak_bytes": record.peak_memory_bytes,
        }
        known = {name: float(value) for name, value in final.items() if value is not None}
        self._log_metrics(run_id, known, step=record.tokens)
        tags = {
            "pretune.outcome": str(outcome),
            "pretune.reason": record.reason[:4000],
            "pretune.memory_verdict": record.memory_verdict or "",
            "mlflow.note.content": f"**{outcome}**: {record.reason}",
        }
        self._client.log_batch(run_id, tags=_as_tags(tags))
        self._client.set_terminated(run_id, _STATUS[outcome])

    def _log_metrics(self, run_id: str, values: Mapping[str, float], step: int) -> None:
        metrics = [_metric(name, value, step) for name, value in values.items() if name != "tokens"]
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])


def _metric(name: str, value: float, step: int) -> Metric:
    # MLflow stores NaN as NaN on SQLite and refuses it elsewhere: an infinity is understood by both.
    finite = value if not math.isnan(value) else math.inf
    return Metric(name, float(finite), int(time.time() * 1000), step)


def _as_params(values: Mapping[str, Any]) -> list[Param]:
    return [Param(name, str(value)[:_MAX_PARAM_CHARACTERS]) for name, value in list(values.items())[:_MAX_PARAMS]]


def _as_tags(values: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(name, value) for name, value in values.items() if value]


def _set_patience(*, timeout_s: int, retries: int) -> dict[str, str | None]:
    # MLflow's default is to try for many minutes; a wrong address must show before training starts.
    wanted = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    return before


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
