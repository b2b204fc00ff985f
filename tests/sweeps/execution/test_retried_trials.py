"""Trials trained again within their sweep: records, files, tables and MLflow, also after a kill."""

import csv
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from swept_folder import example_records, example_sweep, write_results

from command import read_until, run, run_in_terminal, start
from finished_results import child_runs, summary_of, sweep_folder
from finished_sweep import TinySweep
from patience import COMMAND_HANGS_AFTER_S
from sweep_examples import TINY
from sweeps.analysis.result_tables import write_summary
from sweeps.execution.retried_trials import open_again
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import SweepFolder
from sweeps.records.retry_request import RetryError, RetryRequest
from sweeps.records.trial_records import LOSS, TrialStore
from sweeps.tracking.final_values import FINAL_LOSS


class Finished:
    """A finished sweep with trials of every outcome."""

    def __init__(self, results: Path, **changes: object) -> None:
        self.folder = SweepFolder(results, example_sweep(**changes), "4f1c9be2" * 8)
        self.folder.create()
        self.store = TrialStore(self.folder.trials)
        self.records = {one.name: one for one in example_records(self.store)}
        self.failed = next(one for one in self.records.values() if one.outcome is Outcome.FAILED)
        self.summary = write_results(self.folder.path, list(self.records.values()))
        write_summary(self.folder.path / "summary.json", self.summary)
        self.said: list[str] = []

    def retry(self, *values: str) -> None:
        open_again(self.folder, RetryRequest(values), summary=self.summary, at_uri=None, say=self.said.append)

    def now(self, name: str) -> object:
        return next(one for one in self.store.load_all() if one.name == name)


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    return Finished(tmp_path)


def test_a_retried_trial_keeps_number_and_settings_and_begins_without_reports_or_weights(finished: Finished) -> None:
    old, folder = finished.failed, finished.folder.trials / finished.failed.name
    (folder / "step-5").mkdir()
    (folder / "tensorboard").mkdir()
    before = list(finished.store.reports(old))
    finished.retry("failed")
    new = finished.now(old.name)
    assert (new.number, new.settings, new.outcome, new.tokens) == (old.number, old.settings, None, 0)  # type: ignore[attr-defined]
    assert (new.reason, new.metrics, new.started_at, new.ended_at) == ("", {}, "", "")  # type: ignore[attr-defined]
    assert list(finished.store.reports(new)) == []  # type: ignore[arg-type]
    assert not (folder / "step-5").exists()
    kept = folder / "attempt-1"
    assert sorted(path.name for path in kept.iterdir()) == ["reports.jsonl", "tensorboard", "trial.json"]
    assert len((kept / "reports.jsonl").read_text().splitlines()) == len(before) > 1
    assert json.loads((kept / "trial.json").read_text())["outcome"] == "FAILED"
    log = (folder / "log.txt").read_text()
    assert re.search(r"Z attempt 1 ended FAILED at 1,000,000 tokens \(RuntimeError: <disk> full\)", log)
    untouched = [one for one in finished.store.load_all() if one.number != old.number]
    assert untouched == [one for one in finished.records.values() if one.number != old.number]


def test_tokens_and_seconds_of_earlier_attempts_stay_spent(finished: Finished) -> None:
    old = finished.failed
    finished.retry("failed")
    new = finished.now(old.name)
    assert (new.tokens_spent, new.spent_s) == (old.tokens_spent, pytest.approx(old.spent_s))  # type: ignore[attr-defined]
    assert old.tokens_spent == 1_000_000


def test_a_kill_after_the_first_step_of_a_retry_leaves_a_sweep_that_the_plain_command_continues(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: TrialStore, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TrialStore, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            finished.retry("failed")
    assert json.loads((finished.folder.path / "summary.json").read_text())["status"] == "running"
    finished.retry("failed")
    new = finished.now(finished.failed.name)
    assert (new.outcome, new.earlier_attempts) == (None, 1)  # type: ignore[attr-defined]
    kept = finished.folder.trials / finished.failed.name / "attempt-1"
    assert len((kept / "reports.jsonl").read_text().splitlines()) > 1


def test_the_twins_of_a_retried_trial_wait_for_its_next_end(finished: Finished) -> None:
    old = finished.failed
    twin = old.model_copy(update={"number": 19, "twin_of": old.number, "tokens": 0, "tokens_per_s": 7.0})
    finished.store.save(twin)
    finished.retry("failed")
    new = finished.now("trial-0019")
    assert (new.outcome, new.ended_at, new.tokens_per_s, new.earlier_attempts) == (None, "", 7.0, 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("limit", [{"tokens": 10_000_000}, {"tokens": None}])
def test_what_a_retry_takes_beyond_a_limit_is_announced(tmp_path: Path, limit: dict[str, int | None]) -> None:
    budget = {"trials": 18, "tokens_per_trial": 2_000_000, **limit}
    finished = Finished(tmp_path, budget=budget)
    finished.retry("failed")
    warned = [line for line in finished.said if line.startswith("budget")]
    spent = sum(one.tokens_spent for one in finished.records.values())
    expected = f"budget   {spent:,} of 10,000,000 tokens are used; the retried trials may take up to 2,000,000 more"
    assert warned == ([expected] if limit["tokens"] else [])


def test_a_trial_that_counted_as_none_is_announced_as_one_more(finished: Finished) -> None:
    finished.retry("given-up")
    assert any("counted as no trial of budget.trials" in line for line in finished.said)
    assert Counter(one.outcome for one in finished.store.load_all())[None] == sum(
        one.outcome in Outcome.given_up() for one in finished.records.values()
    )


def test_a_retry_without_time_is_refused_before_anything_changes(tmp_path: Path) -> None:
    finished = Finished(tmp_path, budget={"trials": 18, "tokens_per_trial": 2_000_000, "wall_clock": "5min"})
    with pytest.raises(RetryError, match=r"has used 6:52 of budget.wall_clock=5min"):
        finished.retry("failed")
    assert finished.store.load_all() == list(finished.records.values())


TWO = (
    TINY.replace("name: tiny", "name: twice").replace(
        "trials: 6, tokens_per_trial: 30k", "trials: 3, tokens_per_trial: 10k"
    )
    + "early_stopping: {method: none}\nrepeats: {trials: 0}\nresources: {concurrent_trials: 1}\n"
)


@pytest.mark.ray
def test_a_failed_trial_of_a_finished_sweep_is_trained_again_and_all_accounts_agree(tiny_sweep: TinySweep) -> None:
    results, file = tiny_sweep.results, tiny_sweep.results / "twice.yaml"
    file.write_text(TWO)
    # The second trial cannot write its log: a link of somebody else lies there.
    process = start("sweep", file, "--results", results)
    read_until(process, "results in")
    folder = sweep_folder(results, "twice")
    trap = folder / "trials/trial-0002/log.txt"
    trap.parent.mkdir(exist_ok=True)
    trap.symlink_to(results / "elsewhere.txt")
    output, _ = process.communicate(timeout=COMMAND_HANGS_AFTER_S)
    assert process.returncode == 0, output
    assert summary_of(results, "twice")["outcomes"] == {"COMPLETED": 2, "FAILED": 1}

    code, output = run("sweep", file, "--results", results, "--retry", "trial-0007")
    assert code == 2, output
    assert "no such trial. Trials of this sweep: trial-0001, trial-0002, trial-0003." in output
    trap.unlink()
    began_at = time.monotonic()
    code, shown = run_in_terminal("sweep", file, "--results", results, "--retry", "failed")
    seconds = time.monotonic() - began_at
    assert code == 0, shown
    assert "retry    trial-0002 is trained from the start; it ended FAILED" in shown
    # The live view: few redraws, the retried trial alone, and the cursor back at the end.
    frames = re.findall(r"sweep +\d+% of at most 30,000 tokens", shown)
    assert 1 <= len(frames) <= 4 * seconds
    assert re.search(r"trial-0002 +\d+% +\d\.\d{4} +[\d,]+ +[\d.]+ MiB +[\d.]+ MiB", shown), (
        "no running trial was shown"
    )
    assert "trial-0001  COMPLETED" not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")

    records = TrialStore(folder / "trials").load_all()
    assert [(one.outcome, one.earlier_attempts) for one in records] == [
        (Outcome.COMPLETED, 0), (Outcome.COMPLETED, 1), (Outcome.COMPLETED, 0)
    ]  # fmt: skip
    summary = summary_of(results, "twice")
    assert summary["status"] == "finished"
    assert summary["outcomes"] == {"COMPLETED": 3}
    with (folder / "trials.csv").open(newline="") as table:
        rows = {row["trial"]: row for row in csv.DictReader(table)}
    runs = {run.info.run_name: run for run in child_runs(results, "twice")}
    assert sorted(runs) == sorted(rows) == [one.name for one in records]
    for one in records:
        assert float(rows[one.name]["holdout_loss_nats_per_token"]) == one.metrics[LOSS]
        assert runs[one.name].data.metrics[FINAL_LOSS] == pytest.approx(one.metrics[LOSS], rel=1e-12)
        assert rows[one.name]["earlier_attempts"] == str(one.earlier_attempts)
    assert sorted(runs, key=lambda name: runs[name].data.metrics["final/rank"]) == summary["ranking"]
    log = (folder / "trials/trial-0002/log.txt").read_text()
    assert "attempt 1 ended FAILED" in log
    assert "completed" in log
    client = MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
    best = summary["best"]["trial"]
    version = client.search_model_versions("name = 'twice'")
    assert [one.tags["pretune.trial"] for one in version] == [best]

    code, output = run("sweep", file, "--results", results, "--retry", "failed")
    assert code == 0, output
    assert "retry    no trial is FAILED" in output
    assert "nothing was trained" in output
