"""The MLflow UI on the runs of all sweeps, opened where they stand."""

import socket
import subprocess
import sys
from pathlib import Path

from mlflow.tracking import MlflowClient
from rich.console import Console

from sweeps.results_folder import ResultsError
from sweeps.tracking import EXPERIMENT, FINAL_LOSS, store_uri


def serve_ui(results_folder: Path, *, host: str, port: int, console: Console) -> None:
    """Serve the UI until Ctrl-C. A store that is a server already has its own UI: say where.

    Raises:
        ResultsError: There is nothing to show, or the port is taken.
    """
    uri = store_uri(results_folder)
    if uri.startswith("http"):
        console.print(f"runs are recorded on a server: {uri}", highlight=False)
        return
    experiment = None if not (results_folder / "mlflow.db").exists() else _experiment_id(uri)
    if experiment is None:
        raise ResultsError(f"{results_folder} holds no runs yet. Run a sweep first, or give --results FOLDER.")
    _check_port(host, port)
    query = f"searchFilter=&orderByKey=metrics.%60{FINAL_LOSS}%60&orderByAsc=true"
    address = f"http://{host}:{port}/#/experiments/{experiment}/runs?{query}"
    console.print(f"runs: {address}\n(Ctrl-C ends the server)", highlight=False, soft_wrap=True)
    artifacts = (results_folder.absolute() / "mlartifacts").as_uri()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--default-artifact-root",
        artifacts,
    ]
    server = subprocess.Popen([*command, "--host", host, "--port", str(port), "--workers", "1"])
    try:
        server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()


def _experiment_id(uri: str) -> str | None:
    experiment = MlflowClient(uri).get_experiment_by_name(EXPERIMENT)
    return None if experiment is None else str(experiment.experiment_id)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResultsError(
                f"port {port} on {host} cannot be used ({error.strerror}). Give another: --port 5001."
            ) from error
