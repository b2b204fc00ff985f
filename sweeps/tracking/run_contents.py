"""Metrics, tags and parameters of a trial's MLflow run."""

import math
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mlflow.entities import Metric, RunTag

from sweeps.analysis.result_tables import memory_margin
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord

FINAL_LOSS = "final/holdout_loss_nats_per_token"
"""Metric that ranks trials in the runs table and on the compare page."""

_LOSS = "loss_nats_per_token"
"""Suffix of the names of losses."""
_MAX_PARAM_CHARACTERS = 6000
"""MLflow's limit for one parameter value."""


STATUS = {
    Outcome.COMPLETED: "FINISHED",
    Outcome.STOPPED: "FINISHED",
    Outcome.INFEASIBLE: "FINISHED",
    Outcome.DIVERGED: "FAILED",
    Outcome.INTERRUPTED: "KILLED",
    Outcome.FAILED: "FAILED",
}


def final_metrics(record: TrialRecord) -> list[Metric]:
    """Final metrics of a trial."""
    final = {
        FINAL_LOSS: record.loss,
        "final/best_holdout_loss_nats_per_token": record.best_loss,
        "final/tokens": float(record.tokens),
        "final/training_s": record.training_s,
        "final/tokens_per_s": record.tokens_per_s,
        "model/parameters": record.parameters,
        "model/trainable_parameters": record.trainable_parameters,
        "memory/predicted_peak_bytes": record.predicted_peak_memory_bytes,
        "memory/measured_peak_bytes": record.peak_memory_bytes,
        "memory/predicted_margin": memory_margin(record.predicted_peak_memory_bytes, record),
        "memory/measured_margin": memory_margin(record.peak_memory_bytes, record),
        "memory/prediction_error": record.prediction_error,
        "memory/out_of_memory_events": float(record.out_of_memory_events),
    }
    known = {name: float(value) for name, value in final.items() if value is not None}
    return as_metrics(known, step=record.tokens, at_ms=as_ms(record.ended_at))


def final_tags(record: TrialRecord) -> dict[str, str]:
    """Tags with the outcome of a trial and its reason."""
    outcome = record.outcome or Outcome.INTERRUPTED
    return {
        "pretune.outcome": str(outcome),
        "pretune.reason": record.reason[:4000],
        "pretune.memory_verdict": str(record.memory_verdict or ""),
        "pretune.micro_batch_size_asked": str(record.micro_batch_size_asked),
        "pretune.micro_batch_size_used": str(record.micro_batch_size_used or ""),
        "mlflow.note.content": f"**{outcome}**: {record.reason}",
    }


def report_metrics(record: TrialRecord, report: Mapping[str, float]) -> list[Metric]:
    """Metrics of one report of a trial, losses first."""
    # Derive the time from the trial folder instead of a clock, so that a report sent twice gives the same metric.
    # Waiting time between parts of a trial does not count.
    at_ms = as_ms(record.started_at) + round(report.get("training_s", 0.0) * 1000)
    # Losses first: MLflow's pages show the metric logged first.
    names = sorted(report.keys() - {"tokens"}, key=lambda name: (not name.endswith(_LOSS), name))
    values = {name: report[name] for name in names}
    return as_metrics(values, step=int(report["tokens"]), at_ms=at_ms)


def as_metrics(values: Mapping[str, float], *, step: int, at_ms: int) -> list[Metric]:
    """Values as MLflow's metrics at one step; NaN becomes infinity."""
    # MLflow stores NaN on SQLite and refuses it elsewhere; both accept infinity.
    return [
        Metric(name, float(value) if not math.isnan(value) else math.inf, at_ms, step) for name, value in values.items()
    ]


def as_ms(moment: str) -> int:
    """Milliseconds since 1970 of a moment in ISO format; 0 for an empty one."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000) if moment else 0


def now_ms() -> int:
    """Milliseconds since 1970."""
    return round(time.time() * 1000)


def as_tags(values: Mapping[str, str]) -> list[RunTag]:
    """Values as MLflow's tags, without the empty ones."""
    return [RunTag(name, value) for name, value in values.items() if value]


def as_params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as MLflow's parameters, cut at its limit."""
    return {name: str(value)[:_MAX_PARAM_CHARACTERS] for name, value in settings.items()}
