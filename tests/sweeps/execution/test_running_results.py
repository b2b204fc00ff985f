import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from swept_folder import example_records, example_sweep, write_results

from sweeps.execution.running_results import RunningResults
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import TrialRecord, TrialStore


def test_sweep_that_still_runs_has_its_table_summary_and_report(tmp_path: Path) -> None:
    records = example_records(TrialStore(tmp_path / "trials"), num_trials=6)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    asked = 0

    def current() -> tuple[Sequence[TrialRecord], dict[str, Any]]:
        nonlocal asked
        asked += 1
        return records[:4], write_results(elsewhere, records[:4], status=SweepStatus.RUNNING)

    so_far = RunningResults(tmp_path, example_sweep(), current)
    so_far.on_event(TrialEvent.STARTED, records[0], None)
    assert asked == 0
    so_far.on_event(TrialEvent.ENDED, records[0], None)
    so_far.close()
    with (tmp_path / "trials.csv").open() as file:
        assert {row["trial"] for row in csv.DictReader(file)} == {record.name for record in records[:4]}
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "running"
    assert "pretune sweep, running." in (tmp_path / "report.html").read_text()
    assert "pretune sweep, running." in (tmp_path / "EXPERIMENT.md").read_text()
    # The next trial's end comes too soon to write everything again.
    so_far.on_event(TrialEvent.ENDED, records[1], None)
    so_far.close()
    assert asked == 1


def test_results_that_cannot_be_written_end_no_sweep_and_are_told(tmp_path: Path) -> None:
    records = example_records(TrialStore(tmp_path / "trials"), num_trials=2)
    so_far = RunningResults(tmp_path / "away", example_sweep(), lambda: (records, {}))

    def write() -> None:
        so_far.on_event(TrialEvent.ENDED, records[0], None)
        so_far.close()

    with pytest.warns(
        UserWarning, match=r"results to .*away: trials\.csv could not be made: FileNotFound.*; summary\.json could"
    ):
        write()


def test_a_summary_that_cannot_be_made_ends_no_sweep_and_is_told(tmp_path: Path) -> None:
    records = example_records(TrialStore(tmp_path / "trials"), num_trials=2)
    so_far = RunningResults(tmp_path, example_sweep(), lambda: (records, {"largest": max(records[:0], key=str)}))
    with pytest.warns(UserWarning, match=r"the summary so far could not be made: ValueError: max.*a bug in pretune"):
        so_far.on_event(TrialEvent.ENDED, records[0], None)
