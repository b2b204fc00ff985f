import subprocess
import sys
import time
from pathlib import Path

import pytest

from command import ROOT
from sweeps.tracking.mlflow_store import MlflowStore


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
