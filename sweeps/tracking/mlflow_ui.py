"""The MLflow UI for the runs of all sweeps, with links to prepared views."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow.tracking import MlflowClient
from rich.console import Console

from sweeps.analysis.trial_curves import TRAIN_LOSS
from sweeps.records.results_folder import ResultsError
from sweeps.records.trial_records import LOSS
from sweeps.tracking.final_values import FINAL_LOSS
from sweeps.tracking.mlflow_store import EXPERIMENT, refuse_deleted, store_uri
from sweeps.tracking.mlflow_tags import METRIC_TAG, MODE_TAG
from sweeps.tracking.ui_login import is_open_to_others, login

_START_S = 120.0
"""Maximum seconds until the server answers; a free machine needs only some."""
_STOP_S = 10.0
_MODEL_TRAINING = "workflowType=machine_learning"
"""Query part of the address; without it MLflow 3 opens its pages for agents and prompts."""
_VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of experiment tags that store a view of the runs table, as the UI's own "share view" writes them."""
_SECTION = "pretune"
"""Section of the charts page with the charts of pretune."""
_MAX_COMPARED = 30
"""Maximum number of runs on the compare page; browsers limit the length of its address."""


def serve_ui(results_folder: Path, *, host: str, port: int, console: Console, asks_login: bool = False) -> None:
    """Serve the UI until Ctrl-C. A tracking server already has a UI: print its addresses and return.

    Args:
        asks_login: Visitors need a name and a password; see `login`.

    Raises:
        ResultsError: The results folder has no runs, the port is in use, or the login lacks something.
        TrackingError: MLFLOW_TRACKING_URI cannot be used, or the experiment was deleted.
    """
    uri = store_uri(results_folder)
    if uri.startswith("http"):
        if asks_login:
            raise ResultsError(
                "--login: MLFLOW_TRACKING_URI names a server, which serves its own pages; set the login there, or "
                "unset MLFLOW_TRACKING_URI"
            )
        _print_addresses(uri.rstrip("/"), MlflowClient(uri), uri, console)
        return
    is_missing = uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()
    if is_missing or _experiment_id(MlflowClient(uri), uri) is None:
        raise ResultsError(f"{results_folder} has no runs yet. Run a sweep first, or name a folder with --results.")
    _check_port(host, port)
    artifacts = (results_folder.absolute() / "mlartifacts").as_uri()
    address = f"http://{host}:{port}"
    door: AbstractContextManager[dict[str, str]] = login() if asks_login else nullcontext({})
    with door as environment, _server(uri, artifacts, environment, host=host, port=port) as server:
        _wait_until_up(server, address)
        _print_addresses(address, MlflowClient(uri), uri, console)
        if is_open_to_others(host) and not asks_login:
            console.print(
                f"warning: anyone who reaches port {port} of this machine can read, change and delete all runs without "
                "a password. Add --login to ask for one.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        console.print("(Ctrl-C ends the server)", highlight=False)
        server.wait()


def _print_addresses(address: str, client: MlflowClient, uri: str, console: Console) -> None:
    experiment = _experiment_id(client, uri)
    if experiment is None:
        console.print(f"no runs yet at {address}", highlight=False, soft_wrap=True)
        return
    sweeps = client.search_runs(
        [experiment], "tags.`pretune.kind` = 'sweep'", order_by=["attributes.start_time DESC"], max_results=1
    )
    trials = _trials(client, experiment, sweeps[0].info.run_id) if sweeps else []
    # MLflow nests runs only when sorted by date, so the nested and the ranked table need two addresses.
    nested = _view(trials, order_by="attributes.start_time", ascending=False)
    lines = [("all sweeps", _runs_table(address, client, experiment, "sweeps", nested))]
    if sweeps:
        query = _trials_of(sweeps[0].info.run_id)
        metric, ascending = _ranked_by(sweeps[0])
        ranking = _view(trials, order_by=f"metrics.`{metric}`", ascending=ascending, query=query)
        name = sweeps[0].info.run_name
        table = _runs_table(address, client, experiment, "newest", ranking)
        charts = _runs_table(address, client, experiment, "charts", ranking | _charts(trials))
        lines += [(f"{name}, best first", table), (f"{name}, charts", f"{charts}&compareRunsMode=CHART")]
        lines += [(f"{name}, compared", _compare_page(address, experiment, trials))]
    for label, line in lines:
        console.print(f"{label}: {line}", highlight=False, markup=False, soft_wrap=True)


def _ranked_by(sweep_run: Any) -> tuple[str, bool]:
    """The metric that ranks the trials of a sweep, and whether the lowest is best."""
    tags = sweep_run.data.tags
    return tags.get(METRIC_TAG, FINAL_LOSS), tags.get(MODE_TAG, "min") == "min"


def _runs_table(address: str, client: MlflowClient, experiment: str, key: str, view: dict[str, Any]) -> str:
    client.set_experiment_tag(experiment, f"{_VIEW_TAG}pretune-{key}", json.dumps(view))
    return f"{address}/#/experiments/{experiment}/runs?{_MODEL_TRAINING}&viewStateShareKey=pretune-{key}"


def _view(trials: Sequence[Any], *, order_by: str, ascending: bool, query: str = "") -> dict[str, Any]:
    """State of the runs table, as the UI reads it; columns are the swept settings and the results."""
    return {
        "searchFilter": query,
        "orderByKey": order_by,
        "orderByAsc": ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": _columns(trials),
        "runsHiddenMode": "SHOW_ALL",
    }


def _charts(trials: Sequence[Any]) -> dict[str, Any]:
    """Charts above MLflow's own chart per metric: settings against the final loss, and losses over tokens.

    MLflow's compare page cannot be configured so: it shows the first metric of the first run.
    """
    shared = {"metricSectionId": _SECTION, "deleted": False, "isGenerated": False, "runsCountToCompare": _MAX_COMPARED}
    settings: dict[str, Any] = {"type": "PARALLEL", "uuid": f"{_SECTION}-settings", "showAllRuns": True}
    settings |= {"selectedParams": _differing(trials), "selectedMetrics": [FINAL_LOSS]}
    charts = [settings] + [
        {"type": "LINE", "uuid": f"{_SECTION}-{metric}", "displayName": metric, "metricKey": metric,
         "selectedMetricKeys": [metric], "xAxisKey": "step", "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
         "lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "range": {}, "yAxisKey": "metric",
         "yAxisExpressions": [], "selectedXAxisMetricKey": "", "ignoreOutliers": False}
        for metric in (LOSS, TRAIN_LOSS)
    ]  # fmt: skip
    section = {"uuid": _SECTION, "name": "Sweep, over tokens", "display": True, "isReordered": True, "columns": 1}
    return {
        "compareRunCharts": [shared | chart for chart in charts],
        "compareRunSections": [section],
        # Keep this order: our section comes before MLflow's sections by metric prefix.
        "isAccordionReordered": True,
    }


def _differing(trials: Sequence[Any]) -> list[str]:
    """Settings that have more than one value among the trials."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.data.params.items():
            values.setdefault(name, set()).add(value)
    return [name for name, seen in values.items() if len(seen) > 1]


def _columns(trials: Sequence[Any]) -> list[str]:
    swept = {name: None for trial in trials for name in trial.data.params}
    measured = ("final/rank", FINAL_LOSS, "final/tokens", "final/tokens_per_s", "memory/measured_peak_bytes")
    return ["tags.`pretune.outcome`", *(f"metrics.`{name}`" for name in measured), *(f"params.`{n}`" for n in swept)]


def _trials(client: MlflowClient, experiment: str, sweep_run: str) -> list[Any]:
    """Trials of a sweep, best first."""
    order = [f"metrics.`{FINAL_LOSS}` ASC"]
    return list(client.search_runs([experiment], _trials_of(sweep_run), order_by=order, max_results=_MAX_COMPARED))


def _trials_of(sweep_run: str) -> str:
    return f"tags.`mlflow.parentRunId` = '{sweep_run}'"


def _compare_page(address: str, experiment: str, trials: Sequence[Any]) -> str:
    # The page plots only metrics that all runs have, so leave out trials without a loss.
    compared = [trial.info.run_id for trial in trials if FINAL_LOSS in trial.data.metrics]
    runs = quote(json.dumps(compared, separators=(",", ":")))
    return f"{address}/#/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment]))}&{_MODEL_TRAINING}"


@contextmanager
def _server(
    uri: str, artifacts: str, login_environment: dict[str, str], *, host: str, port: int
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-P", "-m", "mlflow", "server"]
    command += ["--default-artifact-root", artifacts, "--host", host, "--port", str(port), "--workers", "1"]
    if login_environment:
        command += ["--app-name", "basic-auth"]
    # Job execution would start seven more processes; the server's log has one line per request.
    environment = {
        # Every user of the machine sees the arguments of a process, and the address of a database has a password.
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
        # As -P, for the processes that the server starts: the current folder may hold a stranger's modules.
        "PYTHONSAFEPATH": "1",
    }
    server = subprocess.Popen(
        [*command, "--uvicorn-opts", "--log-level warning"],
        env=os.environ | environment | login_environment,
        # Own process group: Ctrl-C reaches only this process, which then ends the whole group.
        start_new_session=True,
    )
    # A closed terminal sends SIGHUP to this process alone, as it does Ctrl-C; `nohup` ignores it.
    is_heard = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    ending = [signal.SIGTERM, signal.SIGHUP] if is_heard else [signal.SIGTERM]
    before = {number: signal.signal(number, _interrupt) for number in ending}
    try:
        yield server
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _end_group(server)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _end_group(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            return
        give_up_at = time.monotonic() + _STOP_S
        while time.monotonic() < give_up_at and _is_alive(server):
            time.sleep(0.05)


def _is_alive(server: subprocess.Popen[bytes]) -> bool:
    server.poll()  # Reap the exit status: an unreaped server still counts as a member of its group.
    try:
        os.killpg(server.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until_up(server: subprocess.Popen[bytes], address: str) -> None:
    give_up_at = time.monotonic() + _START_S
    while time.monotonic() < give_up_at:
        if server.poll() is not None:
            raise ResultsError(f"the MLflow server ended with exit code {server.returncode}; see its output above")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise ResultsError(f"the MLflow server at {address} does not answer after {_START_S:.0f} s; run the command again")


def _experiment_id(client: MlflowClient, uri: str) -> str | None:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    refuse_deleted(experiment, uri)
    return str(experiment.experiment_id)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResultsError(
                f"port {port} on {host} cannot be used ({error.strerror}). Choose another, e.g. --port 5001."
            ) from error
