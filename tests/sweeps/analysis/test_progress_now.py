"""How far a sweep has come, from its files."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from swept_folder import TOKENS, example_records, example_sweep, write_results
from typer.testing import CliRunner

from sweeps.analysis.progress_now import newest_sweep, progress_now
from sweeps.commands.cli import app
from sweeps.records.results_folder import LOCK_FILE, ResultsError
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_records import LOSS, TrialRecord, TrialStore
from sweeps.settings.sweep_file import dump_sweep


def a_folder(at: Path, *, status: SweepStatus | None = None) -> Path:
    """A sweep with ended trials, and one that trains at its middle."""
    at.mkdir(parents=True, exist_ok=True)
    (at / "sweep.yaml").write_text(dump_sweep(example_sweep()))
    store = TrialStore(at / "trials")
    records = example_records(store, num_trials=6)
    running = TrialRecord(number=7, settings={}, started_at=records[0].started_at)
    store.save(running)
    for share in (0.25, 0.5):
        store.append_report(
            running, {"tokens": share * TOKENS, "train/tokens_per_s": 2_000.0, LOSS: 5.0, "memory/peak_bytes": 2.0**20}
        )
    if status is not None:
        (at / "summary.json").write_text(json.dumps(write_results(at, records, status=status)))
    return at


def with_driver(folder: Path) -> Path:
    """As a driver on another machine leaves its lock while it lives."""
    (folder / LOCK_FILE).write_text(json.dumps({"pid": 1, "host": "elsewhere", "mark": "x", "beat": 1}))
    return folder


def test_a_running_sweep_has_its_trials_with_share_loss_speed_and_the_time_left(tmp_path: Path) -> None:
    now = progress_now(with_driver(a_folder(tmp_path)))
    assert now.status is SweepStatus.RUNNING
    done = sum(record.is_done for record in now.records)
    assert now.tokens_left == (18 - done) * TOKENS - TOKENS // 2
    lines = list(now.lines())
    (running,) = [words for label, words in lines if label == "running"]
    assert running.startswith("trial-0007 50%, loss 5.0000, 2,000 tokens/s, peak 1.00 MiB")
    (left,) = [words for label, words in lines if label == "left"]
    hours = now.tokens_left / 2_000 / 3600
    assert left.startswith(f"at most {int(hours)}:")
    assert next(words for label, words in lines if label == "best").startswith("trial-")


@pytest.mark.parametrize("status", [None, SweepStatus.RUNNING, SweepStatus.INTERRUPTED])
def test_a_sweep_without_a_driver_that_has_not_finished_was_interrupted(
    status: SweepStatus | None, tmp_path: Path
) -> None:
    now = progress_now(a_folder(tmp_path, status=status))
    assert now.status is SweepStatus.INTERRUPTED
    assert now.running == ()
    assert not [words for label, words in now.lines() if label in ("running", "left")]


def test_a_finished_sweep_is_finished(tmp_path: Path) -> None:
    assert progress_now(a_folder(tmp_path, status=SweepStatus.FINISHED)).status is SweepStatus.FINISHED


def test_a_folder_that_is_no_sweep_is_said_and_stays_as_it_was(tmp_path: Path) -> None:
    for command in (["status", str(tmp_path)], ["stop", str(tmp_path)], ["status", "--results", str(tmp_path)]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        assert "has no sweep" in done.output
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ResultsError):
        newest_sweep(tmp_path)


def test_without_a_name_the_sweep_written_to_last_is_shown(tmp_path: Path) -> None:
    older, newer = a_folder(tmp_path / "a-1"), a_folder(tmp_path / "b-1")
    for path in older.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    done = CliRunner().invoke(app, ["status", "--results", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["folder"] == str(newer)
    assert found["max_trials"] == 18


def test_a_folder_of_several_sweeps_has_a_line_for_each_and_a_damaged_one_hides_no_other(tmp_path: Path) -> None:
    with_driver(a_folder(tmp_path / "traffic-1"))
    a_folder(tmp_path / "traffic-2", status=SweepStatus.FINISHED)
    damaged = a_folder(tmp_path / "traffic-3", status=SweepStatus.FINISHED)
    (damaged / "summary.json").write_text("{")
    (tmp_path / "memory").mkdir()
    done = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.output.splitlines()}
    assert sorted(lines) == ["traffic-1", "traffic-2", "traffic-3"]
    assert re.search(
        r"running +6 of 7 trials have ended, best trial-\d+ .*, 1 train, at most .* left", lines["traffic-1"]
    )
    assert re.search(r"finished +6 of 7 trials have ended, best trial-\d+ with holdout loss \d", lines["traffic-2"])
    assert "damaged" in lines["traffic-3"]
    assert "summary.json cannot be read" in lines["traffic-3"]
    told = json.loads(CliRunner().invoke(app, ["status", str(tmp_path), "--json"]).output)["sweeps"]
    assert sorted(Path(one["folder"]).name for one in told) == sorted(lines)
    assert sum("fault" in one for one in told) == 1


def test_a_folder_without_any_sweep_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert done.exit_code == 2
    assert "and no folder in it has one" in " ".join(done.output.split())
