import subprocess
import sys
import time
from pathlib import Path

import pytest

from command import ROOT
from sweeps.tracking.mlflow_store import MlflowStore, TrackingError, store_uri


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
