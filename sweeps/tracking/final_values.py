"""The figures of an ended trial, under the names that every tracker gets."""

from sweeps.analysis.result_tables import memory_margin
from sweeps.records.outcomes import Outcome
from sweeps.records.trial_records import TrialRecord

PROJECT = "pretune"
"""Experiment in MLflow, and project in its mirrors."""
FINAL_LOSS = "final/holdout_loss_nats_per_token"
"""Metric that ranks trials in the runs table and on the compare page."""
STATUS = {
    Outcome.COMPLETED: "FINISHED",
    Outcome.STOPPED: "FINISHED",
    Outcome.INFEASIBLE: "FINISHED",
    Outcome.DIVERGED: "FAILED",
    Outcome.INTERRUPTED: "KILLED",
    Outcome.FAILED: "FAILED",
}
"""MLflow's status of a run, by the outcome of its trial."""


def final_values(record: TrialRecord) -> dict[str, float]:
    """Known final figures of a trial, by metric."""
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
    return {name: float(value) for name, value in final.items() if value is not None}
