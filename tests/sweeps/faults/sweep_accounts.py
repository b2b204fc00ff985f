"""Accounts of a sweep in its records, trials.csv, summary.json, MLflow and folders, compared with each other and with
those of an undisturbed sweep."""

import csv
import hashlib
import itertools
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from struck_sweep import CHECKPOINT_EVERY_S, Report, StruckSweep

from sweeps.records.trial_records import LOSS, LOSS_COLUMN, TrialRecord, TrialStore
from sweeps.tracking.mlflow_store import EXPERIMENT

_OF_THE_MACHINE = ("training_s", "memory/", "profile/", "train/tokens_per_s", "system/")
"""Beginnings of the names of metrics that differ between two runs of the same training."""


@dataclass(frozen=True)
class Trained:
    """Results of training that the seeds determine."""

    reports: dict[str, dict[int, dict[str, float]]]
    """Metrics by settings and step."""
    outcomes: dict[str, str]
    """By settings."""
    weights: str
    """Hash of the winner's weights."""


def trained(sweep: StruckSweep) -> Trained:
    """What a finished sweep has trained."""
    store = TrialStore(sweep.folder / "trials")
    records = store.load_all()
    return Trained(
        {
            str(record.settings): {int(one["step"]): _determined(one) for one in store.reports(record)}
            for record in records
        },
        {str(record.settings): str(record.outcome) for record in records},
        hashlib.sha256((sweep.folder / "best" / "model.safetensors").read_bytes()).hexdigest(),
    )


def _determined(report: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in report.items() if not name.startswith(_OF_THE_MACHINE)}


def check_same_training(found: Trained, undisturbed: Trained) -> None:
    """Every metric of every step, every outcome and the winner's weights are equal, bit for bit."""
    assert {settings: found.outcomes.get(settings) for settings in undisturbed.outcomes} == undisturbed.outcomes
    for settings, reports in undisturbed.reports.items():
        assert found.reports[settings].keys() == reports.keys()
        for step, report in reports.items():
            assert found.reports[settings][step] == report, (settings, step)
    assert found.weights == undisturbed.weights


def check_accounts(sweep: StruckSweep, *, uri: str | None = None) -> None:
    """Records, trials.csv, summary.json, MLflow and folders of a finished sweep say the same.

    Args:
        uri: MLflow's address; None: the store in the results folder.
    """
    store = TrialStore(sweep.folder / "trials")
    records = store.load_all()
    names = [record.name for record in records]
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    assert all(record.is_done for record in records)
    assert sorted(path.name for path in store.folder.iterdir() if path.is_dir()) == names
    _check_table(sweep.folder, records)
    _check_summary(sweep.folder, records)
    _check_mlflow(uri or f"sqlite:///{sweep.results / 'mlflow.db'}", records)
    for record in records:
        reports = list(store.reports(record))
        assert reports[-1]["tokens"] == record.tokens
        assert _equal(reports[-1].get(LOSS), record.loss)
    unfinished = [path for path in sweep.folder.rglob(".*") if path.name.startswith(".writing-")]
    assert not unfinished


def _check_table(folder: Path, records: list[TrialRecord]) -> None:
    with (folder / "trials.csv").open(newline="") as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == [record.name for record in records]
    for record in records:
        row = rows[record.name]
        assert (row["outcome"], int(row["tokens"])) == (str(record.outcome), record.tokens)
        assert _equal(float(row[LOSS_COLUMN]) if row[LOSS_COLUMN] else None, record.loss)


def _check_summary(folder: Path, records: list[TrialRecord]) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    outcomes = [str(record.outcome) for record in records]
    assert summary["status"] == "finished"
    assert summary["parts_missing"] == []
    assert summary["outcomes"] == {name: outcomes.count(name) for name in outcomes}
    best = min((one for one in records if one.outcome == "COMPLETED"), key=lambda one: one.loss or math.inf)
    assert summary["best"]["trial"] == best.name
    assert summary["best"][LOSS_COLUMN] == best.loss


def _check_mlflow(uri: str, records: list[TrialRecord]) -> None:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id]))
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert len(children) == len(runs) - 1
    assert sorted(children) == [record.name for record in records]
    for record in records:
        _check_run(children[record.name], record)


def _check_run(run: Run, record: TrialRecord) -> None:
    assert run.data.tags["pretune.outcome"] == str(record.outcome)
    # A loss that is not a number is recorded as infinite, which MLflow's database keeps as the largest number.
    loss = sys.float_info.max if record.loss is not None and math.isnan(record.loss) else record.loss
    assert run.data.metrics.get(LOSS) == loss
    assert run.data.metrics["final/tokens"] == record.tokens
    assert {name: _number(run.data.params[name]) for name in record.settings} == record.settings


def _number(text: str) -> Any:
    return json.loads(text)


def _equal(one: float | None, other: float | None) -> bool:
    """Whether two losses are the same; one that is not a number equals itself."""
    return one == other or (one is not None and other is not None and math.isnan(one) and math.isnan(other))


def trained_again(sweep: StruckSweep) -> int:
    """Tokens that trials trained twice, after a check that they lie within one checkpoint interval at each loss.

    A part of a log is the work of one worker. The next part begins at the step after its checkpoint.
    """
    total = 0
    for folder in sorted((sweep.folder / "trials").glob("trial-*")):
        parts = [part for part in sweep.parts(int(folder.name.removeprefix("trial-"))) if part]
        for before, after in itertools.pairwise(parts):
            repeated = [report for report in before if report.step >= after[0].step]
            # A checkpoint is written at the first report that is old enough, so that the last one may lie beyond it.
            # Logs have whole seconds, and midnight may lie between two.
            seconds = [(report.second - repeated[0].second) % 86400 for report in repeated[:-1]]
            assert max(seconds, default=0) <= CHECKPOINT_EVERY_S + 1, (folder.name, repeated)
            total += repeated[-1].tokens - repeated[0].tokens + _step_tokens(before) if repeated else 0
    return total


def _step_tokens(part: list[Report]) -> int:
    return round(part[-1].tokens / part[-1].step)
