"""Metrics, tags and parameters of a trial's MLflow run."""

import math
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mlflow.entities import Metric, RunTag

from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord
from sweeps.tracking.final_values import final_values

_LOSS = "loss_nats_per_token"
"""Suffix of the names of losses."""
_MAX_PARAM_CHARACTERS = 6000
"""MLflow's limit for one parameter value."""


def final_metrics(record: TrialRecord) -> list[Metric]:
    """Final metrics of a trial."""
    return as_metrics(final_values(record), step=record.tokens, at_ms=as_ms(record.ended_at))


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
