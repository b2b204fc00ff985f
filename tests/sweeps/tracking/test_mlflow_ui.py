"""`pretune ui` as a user runs it, asked through MLflow's own REST API."""

import base64
import importlib.util
import json
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import psutil
import pytest
from rich.console import Console

from command import press_ctrl_c, processes_marked, read_until, start
from mlflow_server import free_port
from patience import HANGS_AFTER_S
from postgres import postgres
from sweep_examples import record
from sweeps.analysis.result_tables import ranked
from sweeps.analysis.trial_curves import TRAIN_LOSS
from sweeps.records.outcomes import Outcome
from sweeps.records.results_folder import ResultsError
from sweeps.records.sweep_status import SweepStatus
from sweeps.records.trial_events import TrialEvent
from sweeps.records.trial_records import LOSS, TrialStore
from sweeps.tracking import ui_login
from sweeps.tracking.final_values import FINAL_LOSS
from sweeps.tracking.mlflow_tracking import Tracking
from sweeps.tracking.mlflow_ui import serve_ui

LOSSES = {1: 6.0, 2: 4.0, 3: 5.0}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A results folder whose newest sweep has three trials with a loss and one without."""
    folder = tmp_path_factory.mktemp("results")
    shutil.copy(empty_store, folder / "mlflow.db")
    for name, losses in (("older", {1: 7.0}), ("newer", LOSSES)):
        (folder / name).mkdir()
        store = TrialStore(folder / name / "trials")
        tracking = Tracking(folder, say=print)
        tracking.start(name=name, identity=name, tags={}, params={}, store=store)
        ended = {"started_at": "2026-01-01T00:00:00+00:00", "ended_at": "2026-01-01T00:01:00+00:00"}
        records = [record(number, Outcome.COMPLETED, loss, **ended) for number, loss in losses.items()]
        records.append(record(4, Outcome.INFEASIBLE, **ended))
        for trial in records:
            tracking.on_event(TrialEvent.ENDED, trial, None)
        tracking.finish(status=SweepStatus.FINISHED, records=ranked(records), folder=folder / name)
    return folder


def ask(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=HANGS_AFTER_S) as answer:
        return dict(json.load(answer))


def names_of_runs(address: str, experiment: str, query: str, order_by: list[str]) -> list[str]:
    body = {"experiment_ids": [experiment], "filter": query, "order_by": order_by}
    return [run["info"]["run_name"] for run in ask(address, "runs/search", body)["runs"]]


@pytest.mark.long
def test_the_ui_shows_the_runs_to_this_machine_alone_and_ctrl_c_leaves_nothing_behind(results: Path) -> None:
    port, started_at = free_port(), time.monotonic()
    process = start("ui", "--results", results, "--port", str(port), mark=f"ui-{port}")
    try:
        printed = read_until(process, "Ctrl-C ends the server")
        start_s = time.monotonic() - started_at
        address = f"http://127.0.0.1:{port}"
        tables = re.findall(rf"{address}/#/experiments/(\d+)/runs\?(\S+)", printed)
        (experiment,) = {experiment for experiment, _ in tables}
        views = [parse_qs(query) for _, query in tables]
        assert [view["workflowType"] for view in views] == [["machine_learning"]] * 3

        with urllib.request.urlopen(f"{address}/api/2.0/mlflow/experiments/get?experiment_id={experiment}") as answer:
            tags = {tag["key"]: tag["value"] for tag in json.load(answer)["experiment"]["tags"]}
        keys = [f"mlflow.sharedViewState.{view['viewStateShareKey'][0]}" for view in views]
        all_sweeps, ranking, charts = (json.loads(tags[key]) for key in keys)
        settings, *losses = charts["compareRunCharts"]
        assert settings["selectedParams"] == ["training.learning_rate"]
        assert settings["selectedMetrics"] == [FINAL_LOSS]
        assert [chart["metricKey"] for chart in losses] == [LOSS, TRAIN_LOSS]
        assert (all_sweeps["searchFilter"], all_sweeps["orderByKey"]) == ("", "attributes.start_time")
        assert "params.`training.learning_rate`" in all_sweeps["selectedColumns"]
        assert (ranking["orderByKey"], ranking["orderByAsc"]) == (f"metrics.`{FINAL_LOSS}`", True)
        shown = names_of_runs(address, experiment, ranking["searchFilter"], [f"{ranking['orderByKey']} ASC"])
        assert shown == ["trial-0002", "trial-0003", "trial-0001", "trial-0004"]

        (compared,) = re.findall(rf"{address}/#/compare-runs\?runs=([^&]+)&", printed)
        body = {"experiment_ids": [experiment], "order_by": [f"metrics.`{FINAL_LOSS}` ASC"]}
        known = {run["info"]["run_id"]: run["info"]["run_name"] for run in ask(address, "runs/search", body)["runs"]}
        assert [known[run] for run in json.loads(unquote(compared))] == ["trial-0002", "trial-0003", "trial-0001"]

        listening = {
            connection.laddr
            for running in processes_marked(f"ui-{port}")
            for connection in running.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert {laddr.ip for laddr in listening} == {"127.0.0.1"}
        pressed_at = time.monotonic()
        press_ctrl_c(process)
        process.communicate(timeout=HANGS_AFTER_S)
        assert process.returncode == 0
        # Sooner than it has started, on any machine.
        assert time.monotonic() - pressed_at < start_s
        assert processes_marked(f"ui-{port}") == []
    finally:
        for running in processes_marked(f"ui-{port}"):
            running.kill()


def test_a_folder_without_runs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ResultsError, match=r"has no runs yet\. Run a sweep first"):
        serve_ui(tmp_path, host="127.0.0.1", port=free_port(), console=Console())


def test_a_port_that_is_taken_is_said_with_its_number(results: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ResultsError, match=f"port {port} on 127.0.0.1 cannot be used"):
            serve_ui(results, host="127.0.0.1", port=port, console=Console())


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("flask_wtf") is None, reason="no Flask-WTF (pip install 'mlflow[auth]')")
def test_with_login_the_pages_open_with_the_password_alone(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "correct horse battery")
    process = start("ui", "--results", results, "--port", str(port), "--login", mark=f"ui-{port}")
    try:
        read_until(process, "Ctrl-C ends the server")
        page = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
        answers = {}
        for password in ("", "admin", "correct horse battery"):
            request = urllib.request.Request(page)
            if password:
                shown = base64.b64encode(f"admin:{password}".encode()).decode()
                request.add_header("Authorization", f"Basic {shown}")
            try:
                with urllib.request.urlopen(request, timeout=HANGS_AFTER_S) as answer:
                    answers[password] = answer.status
            except urllib.error.HTTPError as error:
                answers[password] = error.code
        assert answers == {"": 401, "admin": 401, "correct horse battery": 200}
        assert not any("correct horse" in part for one in processes_marked(f"ui-{port}") for part in one.cmdline())
    finally:
        press_ctrl_c(process)
        process.communicate(timeout=HANGS_AFTER_S)


def test_a_login_that_lacks_a_package_and_a_password_is_told_both(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "short")
    monkeypatch.setattr(ui_login.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ResultsError, match=r"Flask-WTF; .*: pip install 'mlflow\[auth\]'; the password has 5 char"):
        serve_ui(results, host="127.0.0.1", port=free_port(), console=Console(), asks_login=True)


def test_a_login_before_a_server_that_has_its_own_pages_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ResultsError, match="set the login there"):
        serve_ui(tmp_path, host="127.0.0.1", port=free_port(), console=Console(), asks_login=True)


@pytest.mark.long
def test_pages_for_other_machines_without_a_login_come_with_a_warning(results: Path) -> None:
    port = free_port()
    process = start("ui", "--results", results, "--port", str(port), "--host", "0.0.0.0", mark=f"ui-{port}")
    try:
        printed = read_until(process, "Ctrl-C ends the server")
        assert f"anyone who reaches port {port} of this machine can read, change and delete all runs" in printed
        assert "Add --login" in printed
    finally:
        press_ctrl_c(process)
        process.communicate(timeout=HANGS_AFTER_S)


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), ("node-7", True)],
)
def test_an_address_is_open_to_others_unless_it_is_of_the_machine_itself(host: str, is_open: bool) -> None:
    assert ui_login.is_open_to_others(host) is is_open


def test_the_password_of_a_database_reaches_its_driver_and_neither_ps_nor_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres() as database:
        # A slash in a password needs no quotes for SQLAlchemy.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", database.replace("mlflow@", "mlflow:cAnArY/x%40cAnArY@"))
        tracking = Tracking(tmp_path, say=print)
        tracking.start(name="tiny", identity="tiny", tags={}, params={}, store=TrialStore(tmp_path / "trials"))
        assert tracking.finish(status=SweepStatus.FINISHED, records=[], folder=tmp_path) is None
        assert (tracking.address, tracking.not_taken) == (database.replace("mlflow@", "***@"), "")
        port = free_port()
        process = start("ui", "--results", tmp_path, "--port", str(port), mark=f"ui-{port}")
        try:
            printed = read_until(process, "Ctrl-C ends the server")
            arguments = [one.cmdline() for one in processes_marked(f"ui-{port}")]
        finally:
            press_ctrl_c(process)
            process.communicate(timeout=HANGS_AFTER_S)
    assert "all sweeps: http://127.0.0.1" in printed
    assert len(arguments) >= 2, "the server was not seen"
    assert "canary" not in (printed + str(arguments)).lower()
