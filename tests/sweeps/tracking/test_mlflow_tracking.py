"""MLflow runs of a sweep, in a real SQLite store and on a real server."""

import importlib.metadata
import json
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import urllib3
from mlflow.tracking import MlflowClient

from data_pipeline.preparation.prepare import prepare
from data_pipeline.reading.parcel_tasks import for_each_parcel_here
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from mlflow_server import MlflowServer, free_port
from patience import HANGS_AFTER_S, wait_until
from postgres import postgres
from sweep_examples import record
from sweeps.analysis.result_tables import ranked
from sweeps.records.outcomes import Outcome
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import LOSS, MemoryVerdict, RefusedProposal, TrialRecord, TrialStore
from sweeps.tracking.final_values import FINAL_LOSS
from sweeps.tracking.mlflow_dataset import dataset_inputs
from sweeps.tracking.mlflow_store import EXPERIMENT, TrackingError
from sweeps.tracking.mlflow_tags import source_tags
from sweeps.tracking.mlflow_tracking import Tracking
from sweeps.tracking.outbox import MOST_AT_ONCE, Outbox

NUM_REPORTS = 5


class Sweep:
    """A results folder with one sweep, told to MLflow as the ledger does: first to disk, then to the listener."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.folder = results / "tiny-12345678"
        self.folder.mkdir()
        self.store = TrialStore(self.folder / "trials")
        self.records: dict[int, TrialRecord] = {}
        self.said: list[str] = []

    def tracking(self) -> Tracking:
        tracking = Tracking(self.results, say=self.said.append, retry_s=0.1)
        tracking.start(
            name="tiny",
            identity=str(self.results),
            tags={"mlflow.note.content": "why"},
            params={"model.layers": 1},
            store=self.store,
        )
        return tracking

    def begin(self, tracking: Tracking, number: int) -> None:
        self._tell(tracking, TrialEvent.STARTED, record(number, None, started_at="2026-01-01T00:00:00+00:00"))

    def report(self, tracking: Tracking, number: int, step: int) -> None:
        report = {"tokens": 1000.0 * step, "training_s": 2.0 * step, LOSS: 5.0 + number - 0.5 * step}
        changes = {"tokens": 1000 * step, "metrics": {LOSS: report[LOSS]}}
        self.store.append_report(self.records[number], report)
        self._tell(tracking, TrialEvent.REPORT, self.records[number].model_copy(update=changes), report)

    def end(self, tracking: Tracking, number: int, outcome: Outcome, reason: str = "in words", **memory: Any) -> None:
        changes = {"outcome": outcome, "reason": reason, "ended_at": "2026-01-01T00:01:00+00:00", **memory}
        self._tell(tracking, TrialEvent.ENDED, self.records[number].model_copy(update=changes))

    def whole_trial(self, tracking: Tracking, number: int, outcome: Outcome = Outcome.COMPLETED) -> None:
        self.begin(tracking, number)
        for step in range(1, NUM_REPORTS + 1):
            self.report(tracking, number, step)
        self.end(tracking, number, outcome)

    def finish(self, tracking: Tracking, refused: Sequence[RefusedProposal] = ()) -> str:
        records = ranked(list(self.records.values()))
        tracking.finish(status=SweepStatus.FINISHED, records=records, folder=self.folder, refused=refused)
        return tracking.not_taken

    def _tell(self, tracking: Tracking, event: TrialEvent, record: TrialRecord, report: Any = None) -> None:
        self.records[record.number] = record
        self.store.save(record)
        tracking.on_event(event, record, report)


class Runs:
    """What MLflow has."""

    def __init__(self, uri: str, sweep: Sweep) -> None:
        self._client = MlflowClient(uri)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        of_sweep = f"tags.`pretune.sweep` = '{sweep.results}'"
        self.all = list(self._client.search_runs([experiment.experiment_id], of_sweep))
        (self.parent,) = [run for run in self.all if run.data.tags["pretune.kind"] == "sweep"]
        self.children = {run.info.run_name: run for run in self.all if run is not self.parent}

    def history(self, name: str, metric: str) -> list[tuple[int, float]]:
        points = self._client.get_metric_history(self.children[name].info.run_id, metric)
        return sorted((point.step, point.value) for point in points)

    def artifacts(self, path: str | None = None) -> set[str]:
        return {file.path for file in self._client.list_artifacts(self.parent.info.run_id, path)}


def losses(number: int, reports: int = NUM_REPORTS) -> list[tuple[int, float]]:
    return [(1000 * step, 5.0 + number - 0.5 * step) for step in range(1, reports + 1)]


@pytest.fixture
def sweep(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Sweep(tmp_path)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def started_server(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "server.db")
    with postgres() if request.param == "postgresql" else nullcontext() as store:
        server = MlflowServer(folder, store=store)
        server.start()
        yield server
        server.kill()


@pytest.fixture
def server(started_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """A server that answers; tests kill it, and start it again."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", started_server.uri)
    return started_server


def local_runs(sweep: Sweep) -> Runs:
    return Runs(f"sqlite:///{sweep.results / 'mlflow.db'}", sweep)


@contextmanager
def tries_to_connect() -> Iterator[list[tuple[str, int]]]:
    """Addresses to which HTTP connections are tried in a block, by any thread."""
    connect, tries = urllib3.util.connection.create_connection, list[tuple[str, int]]()

    def noted(address: tuple[str, int], *arguments: Any, **options: Any) -> socket.socket:
        tries.append(address)
        return connect(address, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(urllib3.util.connection, "create_connection", noted)
        yield tries


def test_a_trial_is_a_child_run_with_swept_settings_as_params_and_metrics_on_the_token_axis(sweep: Sweep) -> None:
    tracking = sweep.tracking()
    sweep.whole_trial(tracking, 1)
    assert sweep.finish(tracking) == ""
    runs = local_runs(sweep)
    child = runs.children["trial-0001"]
    assert child.data.tags["mlflow.parentRunId"] == runs.parent.info.run_id
    assert child.data.params == {"training.learning_rate": "0.001"}
    assert runs.parent.data.params == {"model.layers": "1"}
    assert runs.history("trial-0001", LOSS) == losses(1)
    assert child.data.metrics[FINAL_LOSS] == losses(1)[-1][1]


def test_a_retried_trial_has_one_run_under_the_sweep_and_its_earlier_attempt_lies_below_that(sweep: Sweep) -> None:
    tracking = sweep.tracking()
    sweep.whole_trial(tracking, 1)
    sweep.begin(tracking, 2)
    sweep.report(tracking, 2, 1)
    sweep.end(tracking, 2, Outcome.FAILED, "the disk was full")
    assert sweep.finish(tracking) == ""
    for attempt in (2, 3):
        sweep.records[2] = sweep.store.set_aside(sweep.records[2])
        tracking = sweep.tracking()
        assert not tracking.is_complete
        tracking = sweep.tracking()  # The driver was killed; the next one finds the runs as they are.
        sweep.begin(tracking, 2)
        again = {"settings": {"training.learning_rate": 0.002}, "earlier_attempts": attempt - 1}
        sweep.records[2] = sweep.records[2].model_copy(update=again)
        for step in range(1, NUM_REPORTS + 1):
            sweep.report(tracking, 2, step)
        sweep.end(tracking, 2, Outcome.DIVERGED if attempt == 2 else Outcome.COMPLETED)
        assert sweep.finish(tracking) == ""
    runs = local_runs(sweep)
    below = [run for run in runs.all if run.data.tags.get("mlflow.parentRunId") == runs.parent.info.run_id]
    assert sorted(str(run.info.run_name) for run in below) == ["trial-0001", "trial-0002"]
    trial = runs.children["trial-0002"]
    assert (trial.data.tags["pretune.outcome"], trial.data.tags["pretune.attempt"]) == ("COMPLETED", "3")
    assert trial.data.params == {"training.learning_rate": "0.002"}
    assert runs.history("trial-0002", LOSS) == losses(2)
    for attempt, outcome, reports in ((1, "FAILED", 1), (2, "DIVERGED", NUM_REPORTS)):
        earlier = runs.children[f"trial-0002 attempt {attempt}"]
        assert (earlier.data.tags["pretune.kind"], earlier.data.tags["pretune.outcome"]) == ("attempt", outcome)
        assert runs.history(f"trial-0002 attempt {attempt}", LOSS) == losses(2, reports)
    assert runs.children["trial-0002 attempt 2"].data.tags["mlflow.parentRunId"] == trial.info.run_id
    assert sweep.tracking().is_complete


def test_a_winner_with_fewer_tokens_after_a_retry_replaces_the_loss_that_the_parent_shows(sweep: Sweep) -> None:
    tracking = sweep.tracking()
    sweep.whole_trial(tracking, 2)
    assert sweep.finish(tracking) == ""
    tracking = sweep.tracking()
    sweep.begin(tracking, 1)
    for step in range(1, NUM_REPORTS):
        sweep.report(tracking, 1, step)
    sweep.end(tracking, 1, Outcome.COMPLETED)
    assert sweep.finish(tracking) == ""
    assert local_runs(sweep).parent.data.metrics[FINAL_LOSS] == losses(1)[-2][1] < losses(2)[-1][1]


def test_every_run_says_which_data_it_read_and_which_code_it_ran(sweep: Sweep) -> None:
    (sweep.results / "corpus.txt").write_text("\n".join(f"line {number} of the corpus" for number in range(500)))
    data = prepare(
        CorpusConfig(path=str(sweep.results / "corpus.txt"), holdout=0.1),
        TokenizerConfig(vocabulary=300),
        PackingConfig(sequence_length=32),
        prepared_folder=sweep.results / "prepared",
        run=for_each_parcel_here,
    )
    for _ in range(2):  # A sweep that goes on says it again.
        tracking = Tracking(sweep.results, say=sweep.said.append)
        tracking.start(
            name="tiny",
            identity=str(sweep.results),
            tags={},
            params={},
            store=sweep.store,
            source=source_tags("pretune sweep tiny.yaml", Path(__file__).parent),
            datasets=dataset_inputs(data.manifest),
        )
        sweep.whole_trial(tracking, 1)
        assert sweep.finish(tracking) == ""
    runs = local_runs(sweep)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    for run in (runs.parent, runs.children["trial-0001"]):
        read = {one.dataset.name: one for one in run.inputs.dataset_inputs}
        assert set(read) == {"corpus.txt train", "corpus.txt holdout"}
        assert {one.dataset.digest for one in read.values()} == {data.fingerprint[:36]}
        assert json.loads(read["corpus.txt train"].dataset.profile)["num_elements"] == data.train.num_tokens
        assert json.loads(read["corpus.txt holdout"].dataset.source)["uri"] == str(sweep.results / "corpus.txt")
        assert run.data.tags.get("mlflow.source.git.commit", "") == commit.stdout.strip()
        assert run.data.tags["mlflow.source.name"] == "pretune sweep tiny.yaml"
        assert run.data.tags["pretune.version"] == importlib.metadata.version("pretune")


def test_every_outcome_is_a_tag_with_its_reason_and_a_status_of_mlflow(sweep: Sweep) -> None:
    tracking = sweep.tracking()
    for number, outcome in enumerate(Outcome, start=1):
        sweep.begin(tracking, number)
        sweep.end(tracking, number, outcome, reason=f"reason {number}")
    sweep.finish(tracking)
    children = local_runs(sweep).children
    tags = {child.data.tags["pretune.outcome"]: child.data.tags["pretune.reason"] for child in children.values()}
    assert tags == {str(outcome): f"reason {number}" for number, outcome in enumerate(Outcome, start=1)}
    statuses = {child.data.tags["pretune.outcome"]: child.info.status for child in children.values()}
    assert statuses["INFEASIBLE"] == statuses["STOPPED"] == statuses["COMPLETED"] == "FINISHED"
    assert (statuses["DIVERGED"], statuses["FAILED"], statuses["INTERRUPTED"]) == ("FAILED", "FAILED", "KILLED")


def test_the_parent_gets_the_ranking_the_best_trial_and_the_files(sweep: Sweep) -> None:
    tracking = sweep.tracking()
    for number in (2, 1):
        sweep.whole_trial(tracking, number)
    (sweep.folder / "trials.csv").write_text("rank\n")
    sweep.finish(tracking)
    runs = local_runs(sweep)
    ranks = {name: child.data.metrics["final/rank"] for name, child in runs.children.items()}
    assert ranks == {"trial-0001": 1, "trial-0002": 2}
    assert runs.parent.data.tags["pretune.best_trial"] == "trial-0001"
    assert runs.parent.data.metrics[FINAL_LOSS] == losses(1)[-1][1]
    assert runs.parent.info.status == "FINISHED"
    assert runs.artifacts() == {"trials.csv"}


def test_a_sweep_that_goes_on_adds_to_the_runs_there_are(sweep: Sweep) -> None:
    first = sweep.tracking()
    sweep.begin(first, 1)
    sweep.report(first, 1, 1)
    first.finish(status=SweepStatus.INTERRUPTED, records=list(sweep.records.values()), folder=sweep.folder)
    assert local_runs(sweep).parent.info.status == "KILLED"
    second = sweep.tracking()
    assert second.parent_id == first.parent_id
    for step in range(2, NUM_REPORTS + 1):
        sweep.report(second, 1, step)
    sweep.end(second, 1, Outcome.COMPLETED)
    sweep.finish(second)
    runs = local_runs(sweep)
    assert len(runs.all) == 2
    assert runs.history("trial-0001", LOSS) == losses(1)


def test_a_finished_sweep_is_known_to_be_complete_and_another_store_gets_all_of_it(
    sweep: Sweep, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = sweep.tracking()
    sweep.whole_trial(tracking, 1)
    sweep.finish(tracking)
    assert sweep.tracking().is_complete
    other = f"sqlite:///{shutil.copy(empty_store, sweep.results / 'other.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    again = sweep.tracking()
    assert not again.is_complete
    assert sweep.finish(again) == ""
    assert Runs(other, sweep).history("trial-0001", LOSS) == losses(1)


def test_runs_that_were_deleted_are_recorded_again_by_the_next_command(sweep: Sweep) -> None:
    tracking = sweep.tracking()
    for number in (1, 2):
        sweep.whole_trial(tracking, number)
    assert sweep.finish(tracking) == ""
    client = MlflowClient(f"sqlite:///{sweep.results / 'mlflow.db'}")
    before = local_runs(sweep)
    client.delete_run(before.children["trial-0002"].info.run_id)
    again = sweep.tracking()
    assert not again.is_complete
    assert sweep.finish(again) == ""
    assert local_runs(sweep).parent.info.run_id == before.parent.info.run_id
    assert local_runs(sweep).history("trial-0002", LOSS) == losses(2)
    client.delete_run(before.parent.info.run_id)
    third = sweep.tracking()
    assert not third.is_complete
    assert sweep.finish(third) == ""
    client.delete_run(local_runs(sweep).parent.info.run_id)
    running = sweep.tracking()
    client.delete_run(running.parent_id)
    refused = sweep.finish(running)
    assert "did not receive" in refused
    assert sweep.finish(sweep.tracking()) == ""
    assert len(client.search_runs([before.parent.info.experiment_id], "tags.`pretune.kind` = 'sweep'")) == 1


def test_more_settings_than_mlflow_takes_at_once_are_all_recorded(sweep: Sweep) -> None:
    tracking = Tracking(sweep.results, say=sweep.said.append)
    params = {f"setting_{number}": number for number in range(250)}
    tracking.start(name="tiny", identity=str(sweep.results), tags={}, params=params, store=sweep.store)
    assert len(local_runs(sweep).parent.data.params) == 250


def test_a_loss_that_is_not_a_number_is_recorded(sweep: Sweep) -> None:
    tracking = sweep.tracking()
    sweep.begin(tracking, 1)
    tracking.on_event(TrialEvent.REPORT, sweep.records[1], {"tokens": 1000.0, LOSS: float("nan")})
    sweep.end(tracking, 1, Outcome.DIVERGED)
    assert sweep.finish(tracking) == ""
    # MLflow keeps an infinity as the largest number that a double holds.
    assert local_runs(sweep).history("trial-0001", LOSS)[0][1] > 1e308


def test_a_server_that_does_not_answer_is_said_in_one_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    with (
        tries_to_connect() as tries,
        pytest.raises(TrackingError, match=r"cannot be used: it does not answer. Start that server") as caught,
    ):
        Tracking(tmp_path, say=print)
    # Once more after the first, where MLflow by itself would try for minutes.
    assert len(tries) == 2
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.long
def test_a_server_that_goes_away_and_comes_back_misses_nothing(
    sweep: Sweep, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{HANGS_AFTER_S:.0f}")
    tracking = sweep.tracking()
    sweep.begin(tracking, 1)
    sweep.report(tracking, 1, 1)
    wait_until(lambda: bool(Runs(server.uri, sweep).children), "the first trial never arrived")

    server.stand_still()
    started_at = time.monotonic()
    for step in range(2, NUM_REPORTS + 1):
        sweep.report(tracking, 1, step)
    sweep.end(tracking, 1, Outcome.COMPLETED)
    sweep.whole_trial(tracking, 2)
    # Nobody waits for a server that answers nobody, as they would for as long as a request may take.
    assert time.monotonic() - started_at < HANGS_AFTER_S
    server.kill()
    wait_until(lambda: bool(sweep.said), "nobody said that the server is away")

    server.start()
    sweep.whole_trial(tracking, 3, Outcome.STOPPED)
    assert sweep.finish(tracking) == ""
    assert [line.split("; ")[0] for line in sweep.said] == [
        f"MLflow at {server.uri} does not answer",
        f"MLflow at {server.uri} answers again",
    ]
    runs = Runs(server.uri, sweep)
    assert len(runs.all) == 4
    for number in (1, 2, 3):
        assert runs.history(f"trial-{number:04d}", LOSS) == losses(number)
    assert runs.children["trial-0003"].data.tags["pretune.outcome"] == "STOPPED"
    assert runs.parent.info.status == "FINISHED"


@pytest.mark.long
def test_what_a_server_missed_at_the_end_is_sent_when_the_sweep_is_started_again(
    sweep: Sweep, server: MlflowServer
) -> None:
    tracking = sweep.tracking()
    sweep.whole_trial(tracking, 1)
    wait_until(lambda: "trial-0001" in Runs(server.uri, sweep).children, "the first trial never arrived")
    server.kill()
    sweep.whole_trial(tracking, 2)
    with tries_to_connect() as tries:
        missing = sweep.finish(tracking)
    # MLflow by itself would try each request eight times, for minutes.
    assert 0 < len(tries) < 8
    assert missing.startswith(f"MLflow at {server.uri} did not receive all of ")

    server.start()
    again = sweep.tracking()
    assert not again.is_complete
    assert sweep.finish(again) == ""
    runs = Runs(server.uri, sweep)
    assert len(runs.all) == 3
    assert runs.history("trial-0001", LOSS) == losses(1)
    assert runs.history("trial-0002", LOSS) == losses(2)
    assert sweep.tracking().is_complete


@contextmanager
def locked(sweep: Sweep, how: str) -> Iterator[None]:
    """Another program holds MLflow's file."""
    other = sqlite3.connect(sweep.results / "mlflow.db", isolation_level=None)
    other.execute(f"BEGIN {how}")
    yield
    other.execute("ROLLBACK")
    other.close()


@contextmanager
def moved(sweep: Sweep, how: str) -> Iterator[None]:
    """MLflow's file is gone for a while, and comes back as itself or as a copy."""
    file, away = sweep.results / "mlflow.db", sweep.results / "elsewhere.db"
    file.rename(away)
    yield
    assert not file.exists(), "a new one was begun"
    if how == "as itself":
        away.rename(file)
    else:
        shutil.copy(away, file)


@pytest.mark.parametrize(
    ("away", "how", "why"),
    [
        # MLflow waits 20 s for a lock before it gives up.
        pytest.param(locked, "IMMEDIATE", "takes no records (the database is locked)", marks=pytest.mark.slow),
        pytest.param(locked, "EXCLUSIVE", "takes no records (the database is locked)", marks=pytest.mark.slow),
        (moved, "as itself", "takes no records (its file is gone)"),
        (moved, "as a copy", "takes no records (its file is gone)"),
    ],
)
def test_a_database_that_is_locked_or_gone_for_a_while_misses_nothing(
    away: Callable[[Sweep, str], AbstractContextManager[None]], how: str, why: str, sweep: Sweep
) -> None:
    tracking = sweep.tracking()
    sweep.begin(tracking, 1)
    sweep.report(tracking, 1, 1)
    wait_until(lambda: bool(local_runs(sweep).children), "the first trial never arrived")
    with away(sweep, how):
        for step in range(2, NUM_REPORTS + 1):
            sweep.report(tracking, 1, step)
        sweep.end(tracking, 1, Outcome.COMPLETED)
        wait_until(lambda: bool(sweep.said), "nobody said that the database is away")
        sweep.whole_trial(tracking, 2)
    assert sweep.finish(tracking) == ""
    name = f"MLflow at sqlite:///{sweep.results / 'mlflow.db'}"
    assert [line.split("; ")[0] for line in sweep.said] == [f"{name} {why}", f"{name} answers again"]
    runs = local_runs(sweep)
    for number in (1, 2):
        assert runs.history(f"trial-{number:04d}", LOSS) == losses(number)
        assert runs.children[f"trial-{number:04d}"].data.tags["pretune.outcome"] == "COMPLETED"
    assert runs.parent.info.status == "FINISHED"


@pytest.mark.slow
def test_a_database_that_stays_locked_is_named_at_the_end_and_gets_everything_from_the_next_command(
    sweep: Sweep,
) -> None:
    tracking = sweep.tracking()
    with locked(sweep, "IMMEDIATE"):
        sweep.whole_trial(tracking, 1)
        missing = sweep.finish(tracking)
    assert missing.endswith("did not receive all of 1 trial: the database is locked")
    assert sweep.finish(sweep.tracking()) == ""
    assert local_runs(sweep).history("trial-0001", LOSS) == losses(1)


def test_one_thing_that_is_refused_does_not_hold_up_the_others() -> None:
    taken: list[object] = []

    def send(keys: Sequence[object]) -> None:
        if 2 in keys:
            raise ValueError("not this one\nmore")
        taken.extend(keys)

    said: list[str] = []
    outbox = Outbox(send, answers=lambda: True, say=said.append)
    for key in (1, 2, 3):
        outbox.put(key)
    assert outbox.close() == {2: "not this one"}
    assert taken == [1, 3]
    assert said == []


def test_a_failure_that_will_pass_keeps_everything_until_it_has_passed() -> None:
    taken: list[object] = []
    is_full = threading.Event()
    is_full.set()

    def send(keys: Sequence[object]) -> None:
        if is_full.is_set():
            raise OSError("full")
        taken.extend(keys)

    said: list[str] = []
    outbox = Outbox(
        send, answers=lambda: True, say=said.append, reason_to_wait=lambda _: "the disk is full", retry_s=0.01
    )
    for key in (1, 2, 3):
        outbox.put(key)
    wait_until(lambda: bool(said), "nobody said that the service takes nothing")
    time.sleep(0.2)  # It tries again and again, and reports the fault once.
    is_full.clear()
    wait_until(lambda: len(said) == 2, "nobody said that the service takes everything again")
    assert taken == [1, 2, 3]
    assert said[0].startswith("takes no records (the disk is full); ")
    is_full.set()
    outbox.put(4)
    assert outbox.close() == {4: "the disk is full"}


def test_what_comes_in_quick_succession_is_sent_together_in_order() -> None:
    for gather_s in (0.3, 3.0, 30.0):
        sent: list[list[object]] = []
        outbox = Outbox(lambda keys, to=sent: to.append(list(keys)), answers=lambda: True, say=print, gather_s=gather_s)
        put_at = time.monotonic()
        for key in (3, 1, 2, 1):
            outbox.put(key)
        sent_by_then = list(sent)
        if time.monotonic() - put_at < gather_s:
            break  # Other work may hold this process up for longer, so that it was no quick succession.
        outbox.close()
    assert sent_by_then == []
    wait_until(lambda: bool(sent), "nothing was sent before the end")
    for key in range(2 * MOST_AT_ONCE):
        outbox.put(key)
    assert outbox.close() == {}
    assert sent[0] == [3, 1, 2]
    assert [len(keys) for keys in sent[1:]] == [MOST_AT_ONCE, MOST_AT_ONCE]
    assert [key for keys in sent[1:] for key in keys] == list(range(2 * MOST_AT_ONCE))


def test_what_can_wait_goes_together_and_the_end_of_it_goes_at_once() -> None:
    sent: list[tuple[object, int]] = []
    waiting: list[int] = []

    def send(keys: Sequence[object]) -> None:
        sent.extend((key, len(waiting)) for key in keys)
        waiting.clear()

    outbox = Outbox(send, answers=lambda: True, say=print, patient_s=60)
    outbox.put("trial")
    wait_until(lambda: len(sent) == 1, "what begins was not sent at once")
    for number in range(5):
        waiting.append(number)
        outbox.put("trial", can_wait=True)
    time.sleep(0.2)
    assert len(sent) == 1
    outbox.put("trial")
    wait_until(lambda: len(sent) == 2, "what ends was not sent at once")
    waiting.append(5)
    outbox.put("trial", can_wait=True)
    assert outbox.close() == {}
    assert sent == [("trial", 0), ("trial", 5), ("trial", 1)]


def test_runs_tell_apart_what_memory_did_with_peaks_and_margins(sweep: Sweep) -> None:
    tracking = sweep.tracking()
    memory = {"memory_limit_bytes": 100, "predicted_peak_memory_bytes": 80, "peak_memory_bytes": 82}
    ran_out = {"out_of_memory_events": 1, "memory_limit_bytes": 100, "predicted_peak_memory_bytes": 125}
    sizes = {"micro_batch_size_asked": 64, "micro_batch_size_used": 48}
    for number in (1, 2, 3):
        sweep.begin(tracking, number)
    sweep.end(tracking, 1, Outcome.COMPLETED, **memory)
    sweep.end(tracking, 2, Outcome.COMPLETED, **ran_out, **sizes, memory_verdict=MemoryVerdict.SURVIVED)
    sweep.end(tracking, 3, Outcome.INFEASIBLE, **ran_out, memory_verdict=MemoryVerdict.RAN_OUT)
    refused = [RefusedProposal(settings={}, verdict=MemoryVerdict.REFUSED, reason="x")] * 2
    assert sweep.finish(tracking, refused) == ""
    runs = local_runs(sweep)
    fitted, survived, ran_out = (runs.children[f"trial-{number:04d}"].data for number in (1, 2, 3))
    assert fitted.metrics["memory/measured_margin"] == pytest.approx(0.18)
    assert fitted.metrics["memory/prediction_error"] == pytest.approx(0.025)
    assert "pretune.memory_verdict" not in fitted.tags
    assert survived.tags["pretune.memory_verdict"] == "ran out of memory and went on"
    assert survived.tags["pretune.micro_batch_size_asked"] == "64"
    assert survived.tags["pretune.micro_batch_size_used"] == "48"
    assert survived.metrics["memory/predicted_margin"] == pytest.approx(-0.25)
    assert survived.metrics["memory/out_of_memory_events"] == 1.0
    assert "memory/prediction_error" not in survived.metrics
    assert ran_out.tags["pretune.memory_verdict"] == "ran out of memory"
    counts = {name: value for name, value in runs.parent.data.metrics.items() if name.startswith("memory/")}
    assert counts == pytest.approx(
        {
            "memory/refused_by_prediction": 2,
            "memory/skipped_by_dominance": 0,
            "memory/ran_out_of_memory": 1,
            "memory/ran_out_of_memory_and_went_on": 1,
            "memory/calibrated_trials": 1,
            "memory/median_relative_error": 0.025,
            "memory/largest_relative_error": 0.025,
            "memory/mean_signed_relative_error": 0.025,
        }
    )
