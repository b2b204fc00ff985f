"""A baseline that the sweep file names, beside the best trial in the report."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from swept_folder import example_records, example_sweep, write_results

from data_pipeline.schema.user_errors import InputFault
from sweep_examples import record
from sweeps.analysis.result_tables import write_summary
from sweeps.records.outcomes import Outcome
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import LOSS, TrialStore
from sweeps.report.baseline import read_baseline
from sweeps.report.report import write_report
from sweeps.tracking.mlflow_tracking import Tracking

ENDED = {"started_at": "2026-01-01T00:00:00+00:00", "ended_at": "2026-01-01T00:01:00+00:00"}


def swept(folder: Path, **more: Any) -> dict[str, Any]:
    """A results folder with its summary, and what the summary says."""
    folder.mkdir()
    summary = write_results(folder, example_records(TrialStore(folder / "trials")), **more)
    write_summary(folder / "summary.json", summary)
    return summary


def reported(folder: Path, **more: Any) -> str:
    """The report of such a folder."""
    summary = swept(folder, **more)
    write_report(folder, example_sweep(), TrialStore(folder / "trials").load_all(), summary)
    return (folder / "EXPERIMENT.md").read_text()


def test_a_results_folder_gives_the_loss_and_settings_of_its_best_trial(tmp_path: Path) -> None:
    best = swept(tmp_path / "earlier")["best"]
    baseline = read_baseline(str(tmp_path / "earlier"), tmp_path)
    assert baseline.name == f"{best['trial']} of earlier"
    assert baseline.loss == best[LOSS.replace("/", "_")]
    assert baseline.settings == {name: value for name, value in best.items() if name in example_sweep().search}


def test_a_run_of_mlflow_gives_the_same(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking = Tracking(tmp_path, say=print)
    store = TrialStore(tmp_path / "trials")
    tracking.start(name="one", identity="one", tags={"pretune.data": "abc"}, params={}, store=store)
    tracking.on_event(TrialEvent.ENDED, record(1, Outcome.COMPLETED, 4.5, tokens=1000, **ENDED), None)
    tracking.finish(status=SweepStatus.FINISHED, records=[], folder=tmp_path)
    client = MlflowClient(tracking.address)
    experiment = client.get_run(tracking.parent_id).info.experiment_id
    (trial,) = client.search_runs([experiment], "tags.`pretune.kind` = 'trial'")
    baseline = read_baseline(f"runs:/{trial.info.run_id}", tmp_path)
    assert (baseline.loss, baseline.tokens, baseline.data_fingerprint) == (4.5, 1000, "abc")
    assert baseline.settings == {"training.learning_rate": "0.001"}
    with pytest.raises(InputFault, match="baseline: runs:/0123 is not in MLflow"):
        read_baseline("runs:/0123", tmp_path)


def test_the_report_says_by_how_much_the_best_trial_differs(tmp_path: Path) -> None:
    swept(tmp_path / "earlier")
    baseline = read_baseline(str(tmp_path / "earlier"), tmp_path)
    higher = baseline.model_copy(update={"loss": baseline.loss + 0.25})
    text = reported(tmp_path / "now", baseline=higher.model_dump())
    assert "The best trial is 0.2500 nats per token" in text
    assert "below the baseline" in text
    assert baseline.name in text
    assert "do not compare exactly" not in text
    other = higher.model_copy(update={"data_fingerprint": "another"})
    assert "do not compare exactly" in reported(tmp_path / "elsewhere", baseline=other.model_dump())


def test_a_folder_that_is_no_sweep_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputFault, match="is no results folder of a sweep"):
        read_baseline(str(tmp_path), tmp_path)
