import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from command import ROOT
from patience import HANGS_AFTER_S
from sweeps.commands.terminal import Terminal
from sweeps.tracking.mlflow_store import EXPERIMENT, MlflowStore, TrackingError, store_uri
from sweeps.tracking.mlflow_ui import serve_ui


@pytest.mark.long
def test_a_store_whose_maker_was_killed_in_the_middle_is_made_anew(tmp_path: Path) -> None:
    script = "import sys, pathlib, sweeps.tracking.mlflow_store as m; m.MlflowStore(pathlib.Path(sys.argv[1]))"
    maker = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT)
    partial = tmp_path / ".new-mlflow.db"
    while not (partial.exists() and partial.stat().st_size) and maker.poll() is None:
        time.sleep(0.001)
    maker.kill()
    maker.wait()
    assert partial.exists(), "it was done before it could be killed"
    assert not (tmp_path / "mlflow.db").exists()
    store = MlflowStore(tmp_path)
    assert store.answers()
    assert store.client.get_experiment(store.experiment_id).name == "pretune"
    # Opened again it is the same store.
    assert MlflowStore(tmp_path).experiment_id == store.experiment_id


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("https://someone:CANARY@host:5000", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("https://CANARY@host:5000", "MLFLOW_TRACKING_TOKEN"),
        ("postgresql://someone:CAN@ARY@host/db", "write an @ in the password as %40"),
    ],
)
def test_an_address_whose_password_mlflow_would_show_is_refused_with_the_way_that_works(
    uri: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError) as caught:
        store_uri(tmp_path)
    assert remedy in str(caught.value)
    assert "CAN" not in str(caught.value)
    assert "ARY" not in str(caught.value)


@pytest.mark.parametrize("uri", ["postgresql://someone:a/b%40c@host/db?sslmode=require", "http://host:5000"])
def test_an_address_that_the_driver_can_use_stays_whole(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store_uri(tmp_path) == uri


def deleted_experiment(folder: Path, empty_store: Path) -> tuple[MlflowClient, str, str]:
    """A store whose experiment was deleted on MLflow's pages, with a run in it: client, experiment, run."""
    shutil.copy(empty_store, folder / "mlflow.db")
    store = MlflowStore(folder)
    run = store.client.create_run(store.experiment_id)
    store.client.delete_experiment(store.experiment_id)
    return store.client, store.experiment_id, run.info.run_id


def test_a_deleted_experiment_of_our_own_file_is_restored_with_its_runs_and_said(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client, experiment, run = deleted_experiment(tmp_path, empty_store)
    said: list[str] = []
    assert MlflowStore(tmp_path, say=said.append).experiment_id == experiment
    assert client.get_experiment_by_name(EXPERIMENT).lifecycle_stage == "active"
    assert client.get_run(run).info.lifecycle_stage == "active"
    (line,) = said
    assert "it is restored" in line
    MlflowStore(tmp_path, say=said.append)
    assert len(said) == 1


@pytest.mark.long
def test_a_deleted_experiment_that_others_may_own_is_refused_with_the_command_that_restores_it(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "größte Läufe, Anna's"
    folder.mkdir()
    client, _, run = deleted_experiment(folder, empty_store)
    # The pages show, and change nothing: they do not restore it of themselves.
    with pytest.raises(TrackingError, match="was deleted there") as of_the_pages:
        serve_ui(folder, host="127.0.0.1", port=5000, console=Terminal(file=io.StringIO()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    with pytest.raises(TrackingError, match="was deleted there") as of_a_sweep:
        MlflowStore(tmp_path)
    assert "unset MLFLOW_TRACKING_URI" not in str(of_a_sweep.value)
    assert str(of_a_sweep.value).endswith("runs: mlflow experiments restore -x 1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    _, _, command = str(of_the_pages.value).partition("runs: ")
    program = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command], env=os.environ | program, capture_output=True, text=True, timeout=HANGS_AFTER_S
    )
    assert done.returncode == 0, done.stderr
    assert client.get_run(run).info.lifecycle_stage == "active"
    assert MlflowStore(folder).answers()


def test_a_file_that_is_no_store_is_said_with_a_remedy_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(os.urandom(4096))
    with pytest.raises(TrackingError, match="Move that file away") as caught:
        MlflowStore(tmp_path)
    assert "MLFLOW_TRACKING_URI" not in str(caught.value)
