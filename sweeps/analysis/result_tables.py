"""The results of a sweep as files for scripts: trials.csv and summary.json."""

import io
import json
import math
import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_pipeline.files.whole_files import write_atomically
from sweeps.analysis.noise_floor import Standing, seed_groups, standings, verdict
from sweeps.records.csv_tables import write_csv
from sweeps.records.outcomes import Outcome
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import MemoryVerdict, RefusedProposal, TrialRecord
from sweeps.settings.metric_config import Metric

_ORDER = (
    Outcome.COMPLETED,
    Outcome.STOPPED,
    Outcome.DIVERGED,
    Outcome.INTERRUPTED,
    Outcome.FAILED,
    Outcome.INFEASIBLE,
    None,
)
_VERSIONS = ("pretune", "ray", "torch", "tokenizers", "pandas", "mlflow", "pyarrow", "optuna")


def ranked(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Best first: completed trials by the cost of their settings, then stopped ones by the last rung that they reached.

    The cost of settings is the mean over their seeds plus one standard error: see `noise_floor.seed_groups`. By default
    it is the holdout loss.
    """
    groups = {r.number: position for position, group in enumerate(seed_groups(records)) for r in group.records}

    def key(record: TrialRecord) -> tuple[Any, ...]:
        # NaN compares false with everything: as a sort key it would scramble the order.
        cost = record.cost if record.cost is not None and math.isfinite(record.cost) else math.inf
        # By rung, not by tokens: a larger batch overshoots its rung further.
        came_far = -max(record.rung_losses, default=0) if record.outcome is Outcome.STOPPED else 0
        position = groups.get(record.twin_of or record.number, len(records))
        return (_ORDER.index(record.outcome), came_far, position, record.twin_of is not None, cost, record.number)

    return sorted(records, key=key)


def best_trial(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The best trial of the best settings; None if no trial completed."""
    first = next(iter(ranked(records)), None)
    if first is None or first.outcome is not Outcome.COMPLETED or first.cost is None or not math.isfinite(first.cost):
        return None
    return first


def results_in_words(record: TrialRecord) -> str:
    """The metric that ranks a trial, then its holdout loss."""
    loss = f"holdout loss {record.loss:.4f}" if record.loss is not None else "no holdout loss"
    score, metric = record.score, record.ranked_by
    return loss if metric.is_loss or score is None else f"{metric.name} {score:.4f}, {loss}"


def trial_row(record: TrialRecord, rank: int, standing: Standing | None = None) -> dict[str, Any]:
    """One trial as a row of trials.csv; the column names hold the units.

    Args:
        standing: Given for a completed trial.
    """
    metrics = {name.replace("/", "_"): value for name, value in record.metrics.items()}
    return {
        "rank": rank,
        "trial": record.name,
        "outcome": record.state,
        "reason": record.reason,
        **record.settings,
        **metrics,
        "best_holdout_loss_nats_per_token": record.best_loss,
        "seeds": standing.num_seeds if standing else None,
        **_mean_over_seeds(record.ranked_by, standing),
        "tie_group": standing.tie_group if standing else None,
        "tokens": record.tokens,
        "tokens_spent": record.tokens_spent,
        "training_s": round(record.training_s, 3),
        "branch_s": round(record.branch_s, 3),
        "tokens_per_s": None if record.tokens_per_s is None else round(record.tokens_per_s, 1),
        "training_flops": record.training_flops,
        "parameters": record.parameters,
        "trainable_parameters": record.trainable_parameters,
        "micro_batch_size_asked": record.micro_batch_size_asked,
        "micro_batch_size_used": record.micro_batch_size_used,
        "memory_verdict": record.memory_verdict,
        "out_of_memory_events": record.out_of_memory_events,
        "predicted_peak_memory_bytes": record.predicted_peak_memory_bytes,
        "measured_peak_memory_bytes": record.peak_memory_bytes,
        "memory_limit_bytes": record.memory_limit_bytes,
        "predicted_memory_margin": memory_margin(record.predicted_peak_memory_bytes, record),
        "measured_memory_margin": memory_margin(record.peak_memory_bytes, record),
        "chosen_by": record.chosen_by,
        "taken_over_from": record.taken_over_from,
        "run_to_end": record.run_to_end,
        "twin_of": None if record.twin_of is None else f"trial-{record.twin_of:04d}",
        "interruptions": record.interruptions,
        "earlier_attempts": record.earlier_attempts,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
    }


def _mean_over_seeds(metric: Metric, standing: Standing | None) -> dict[str, float | None]:
    """The mean of the metric that ranks trials over the seeds of one setting, with its interval."""
    found: list[float | None] = [None] * 3
    if standing is not None:
        found = [metric.value(standing.mean_loss), standing.low, standing.high]
        if standing.low is not None and standing.high is not None:
            found[1:] = sorted(map(metric.value, (standing.low, standing.high)))
    if metric.is_loss:
        names = [f"mean_holdout_loss_{what}_nats_per_token" for what in ("over_seeds", "low_95", "high_95")]
    else:
        names = [f"mean_{metric.column}_{what}" for what in ("over_seeds", "low_95", "high_95")]
    return dict(zip(names, found, strict=True))


def memory_margin(num_bytes: int | None, record: TrialRecord) -> float | None:
    """Free share of a trial's memory limit beside `num_bytes`; negative beyond the limit."""
    if num_bytes is None or record.memory_limit_bytes is None:
        return None
    return round(1 - num_bytes / record.memory_limit_bytes, 4)


def calibration(records: Sequence[TrialRecord]) -> dict[str, float]:
    """Relative errors of the memory predictions of all trials. Empty without a measured trial."""
    errors = [error for record in records if (error := record.prediction_error) is not None]
    if not errors:
        return {}
    sizes = [abs(error) for error in errors]
    return {
        "calibrated_trials": len(errors),
        "median_relative_error": statistics.median(sizes),
        "largest_relative_error": max(sizes),
        "mean_signed_relative_error": statistics.fmean(errors),
    }


def memory_counts(records: Sequence[TrialRecord], refused: Sequence[RefusedProposal]) -> dict[str, int]:
    """Number of trials and refused proposals by memory verdict, invalid combinations only if there are any."""
    counts = Counter(record.memory_verdict for record in records)
    counts.update(proposal.verdict for proposal in refused)
    return {one: counts[one] for one in MemoryVerdict if one is not MemoryVerdict.INVALID or counts[one]}


def write_trials_csv(path: Path, records: Sequence[TrialRecord]) -> None:
    """Write one row per trial, best first."""
    standing = standings(records)
    rows = [
        trial_row(record, rank, standing.get(record.number)) for rank, record in enumerate(ranked(records), start=1)
    ]
    # A trial without metrics has fewer columns: the longest row sets the order.
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    text = io.StringIO()
    write_csv(text, columns, ([row.get(name) for name in columns] for row in rows))
    write_atomically(path, text.getvalue())


def summarize(
    *,
    name: str,
    identity: str,
    status: SweepStatus,
    records: Sequence[TrialRecord],
    refused: Sequence[RefusedProposal],
    data: dict[str, Any],
    wall_s: float,
) -> dict[str, Any]:
    """The contents of summary.json.

    Args:
        data: Figures of the prepared corpus.
        wall_s: Seconds of the sweep, summed over resumptions.
    """
    best = best_trial(records)
    spent_s = {
        str(outcome): round(sum(r.spent_s for r in records if r.outcome is outcome), 3)
        for outcome in Outcome
        if any(r.outcome is outcome for r in records)
    }
    return {
        "name": name,
        "identity": identity,
        "status": status,
        "best": None if best is None else trial_row(best, 1, standings(records).get(best.number)),
        "winner": winner_figures(records),
        "ranking": [record.name for record in ranked(records)],
        "outcomes": dict(Counter(record.state for record in records)),
        "memory_verdicts": dict(Counter(r.memory_verdict for r in records if r.memory_verdict)),
        "memory_verdicts_with_proposals": memory_counts(records, refused),
        "memory_calibration": calibration(records),
        "refused_before_launch": [proposal.model_dump() for proposal in refused],
        "training_s_by_outcome": spent_s,
        "wall_s": round(wall_s, 3),
        "data": data,
        "versions": versions(),
    }


def num_searched(records: Sequence[TrialRecord]) -> int:
    """Trials of the search that have ended; infeasible ones and repeats are not counted, as in the budget."""
    return sum(r.is_done and not r.is_repeat and r.outcome is not Outcome.INFEASIBLE for r in records)


def ended_by(status: SweepStatus, limit: str, records: Sequence[TrialRecord], *, most: int) -> str:
    """The end of the search in words: the limit that it reached, and the trials that it has not ended.

    Args:
        limit: Limit that ended the proposals; empty while there are more.
        most: Most trials of the search.
    """
    if status not in (SweepStatus.INTERRUPTED, SweepStatus.INCOMPLETE):
        return limit
    cause = "an interruption" if status is SweepStatus.INTERRUPTED else "lost workers"
    if limit and all(record.is_done for record in records if not record.is_repeat):
        return f"{limit}; {cause} ended the repeats"
    done = num_searched(records)
    return f"{cause}: {done} of {max(done, most)} trials of the search have ended"


def winner_figures(records: Sequence[TrialRecord]) -> dict[str, Any] | None:
    """The winner, its margin over the next settings, and the noise between seeds; None if no trial completed."""
    found = verdict(records)
    if found is None:
        return None
    metric = found.metric
    unit = "_nats_per_token" if metric.is_loss else ""
    named = {"mean_holdout_loss": found.best.mean} if metric.is_loss else {"mean": metric.value(found.best.mean)}
    return {
        "trial": found.best.records[0].name,
        "seeds": found.best.count,
        "metric": metric.name,
        **{f"{name}{unit}": value for name, value in named.items()},
        "runner_up": None if found.second is None else found.second.records[0].name,
        f"margin{unit}": found.margin_nats,
        f"least_margin{unit}": found.least_margin_nats,
        f"noise_between_seeds{unit}": None if found.noise is None else found.noise.std_nats,
        "degrees_of_freedom": None if found.noise is None else found.noise.degrees,
        f"noise_of_holdout{unit}": None if found.noise is None else found.noise.holdout_nats,
        f"luck{unit}": found.luck_nats,
        "is_told_apart": found.is_told_apart,
        "tied_with": [group.records[0].name for group in found.tied],
    }


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, replaced whole."""
    write_atomically(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS}
