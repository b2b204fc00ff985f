"""Changes of MLflow runs written into a SQLite file at once, against MLflow's own client."""

import math
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sweeps.tracking.mlflow_runs import SendsRequests, run_writer
from sweeps.tracking.run_changes import RunChange, RunWriter
from sweeps.tracking.sqlite_runs import WritesTables

DATASETS = [
    DatasetInput(Dataset(name, "digest", "local", "{}"), [InputTag("mlflow.data.context", name)])
    for name in ("training", "evaluation")
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a sweep's run, which reads its data sets, and one that an earlier version made without any."""
    path = tmp_path_factory.mktemp("begun") / "mlflow.db"
    client = MlflowClient(f"sqlite:///{path}")
    experiment = client.create_experiment("pretune", artifact_location=path.parent.as_uri())
    sweep = client.create_run(experiment, run_name="sweep")
    client.log_inputs(sweep.info.run_id, DATASETS)
    client.create_run(experiment, run_name="undescribed", start_time=500)
    return path


def opened(begun: Path, folder: Path) -> tuple[MlflowClient, str]:
    """A client of a copy, and the experiment."""
    folder.mkdir()
    client = MlflowClient(f"sqlite:///{shutil.copy(begun, folder / 'mlflow.db')}")
    experiment = client.get_experiment_by_name("pretune")
    assert experiment is not None
    return client, str(experiment.experiment_id)


def write_a_sweep(client: MlflowClient, experiment: str, writer: RunWriter) -> None:
    (undescribed,) = client.search_runs([experiment], "attributes.run_name = 'undescribed'")
    curve = [Metric("loss", 5.0 - step, 1000 * step, step) for step in range(3)]
    running = RunChange(None, "running", 1000, DATASETS, {"rate": "0.1"}, curve, {"outcome": "RUNNING"}, "RUNNING")
    ended = RunChange(None, "ended", 2000, DATASETS, {"rate": "0.2"}, curve[::-1], {"why": "x" * 5000}, "FAILED", 3000)
    bare = RunChange(None, "bare", 4000, status="FINISHED", ended_ms=4000)
    writer.write([running, ended, bare])
    # Of numbers that are there already some come again, some are older than the last one, and some are none.
    more = [*curve, Metric("loss", 9.0, 1000, 1), Metric("loss", 1.0, 5000, 7), Metric("loss", math.inf, 5000, 7)]
    late = [
        RunChange(running.run_id, metrics=more, tags={"outcome": "DONE", "new": "1"}, status="FINISHED", ended_ms=9000),
        RunChange(str(undescribed.info.run_id), datasets=DATASETS, params={"rate": "0.3"}, status="RUNNING"),
        RunChange(ended.run_id, metrics=[Metric("final/rank", 1.0, 9000, 2), Metric("loss", math.nan, 9000, 9)]),
    ]
    for _ in range(2):
        writer.write(late)


def rows(file: Path) -> dict[str, list[str]]:
    """Every row of every table, with names for the ids that are drawn at random."""
    with sqlite3.connect(file) as connection:

        def select(what: str) -> list[tuple[object, ...]]:
            return connection.execute(f"select {what}").fetchall()

        names = {
            one: name
            for what in ("run_uuid, name from runs", "dataset_uuid, name from datasets")
            for one, name in select(what)
        }
        for input_id, source, run in select("input_uuid, source_id, destination_id from inputs"):
            names[input_id] = f"{names[source]} of {names[run]}"
        tables = [str(name) for (name,) in select("name from sqlite_master where type = 'table'")]
        found = {table: sorted(map(str, select(f"* from {table}"))) for table in tables}
    for table in tables:
        for drawn, name in names.items():
            found[table] = [row.replace(str(drawn), str(name)) for row in found[table]]
        found[table].sort()
    return found


def test_what_is_written_at_once_is_row_for_row_what_the_client_would_have_written(begun: Path, tmp_path: Path) -> None:
    found = []
    makes: list[tuple[str, Callable[[MlflowClient, str], RunWriter]]] = [
        ("once", run_writer),
        ("client", SendsRequests),
    ]
    for name, make in makes:
        client, experiment = opened(begun, tmp_path / name)
        writer = make(client, experiment)
        assert isinstance(writer, SendsRequests) == (name == "client")
        write_a_sweep(client, experiment, writer)
        found.append(rows(tmp_path / name / "mlflow.db"))
    assert found[0] == found[1]
    assert len(found[0]["metrics"]) == 3 + 3 + 3 + 2
    assert len(found[0]["inputs"]) == len(found[0]["input_tags"]) == 2 * 4


def test_of_changes_one_of_which_is_refused_nothing_is_written(begun: Path, tmp_path: Path) -> None:
    client, experiment = opened(begun, tmp_path / "store")
    writer = run_writer(client, experiment)
    assert isinstance(writer, WritesTables)
    before = rows(tmp_path / "store" / "mlflow.db")
    good = RunChange(None, "good", 1000, DATASETS, {"rate": "0.1"}, [Metric("loss", 1.0, 1, 1)])
    bad = RunChange(None, "bad", 1000, status="no status of MLflow's")
    with pytest.raises(MlflowException):
        writer.write([good, bad])
    assert good.run_id is None
    assert rows(tmp_path / "store" / "mlflow.db") == before
    writer.write([good])
    assert good.run_id is not None
    assert client.get_run(good.run_id).data.metrics == {"loss": 1.0}


def test_tables_of_another_version_of_mlflow_are_left_to_mlflow(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, experiment = opened(begun, tmp_path / "store")
    assert isinstance(run_writer(client, experiment), WritesTables)
    monkeypatch.setattr(mlflow, "__version__", "4.0.0")
    assert isinstance(run_writer(client, experiment), SendsRequests)


MOVED_TABLES = """
import builtins, sys
import mlflow

usual_import = builtins.__import__

def import_of_a_later_mlflow(name, globals=None, *others, **named):
    # MLflow itself knows where its tables are.
    if name.startswith("mlflow.store.tracking.dbmodels") and (globals or {}).get("__name__", "").startswith("sweeps."):
        raise ImportError(f"{name} has moved")
    return usual_import(name, globals, *others, **named)

builtins.__import__ = import_of_a_later_mlflow
mlflow.__version__ = sys.argv[2] or mlflow.__version__
from mlflow.tracking import MlflowClient
import sweeps.tracking.mlflow_tracking
from sweeps.tracking.mlflow_runs import run_writer
from sweeps.tracking.run_changes import RunChange
client = MlflowClient(f"sqlite:///{sys.argv[1]}")
change = RunChange(None, "trial", 1000, params={"rate": "0.1"}, status="FINISHED", ended_ms=2000)
writer = run_writer(client, client.get_experiment_by_name("pretune").experiment_id)
writer.write([change])
print(type(writer).__name__, client.get_run(change.run_id).data.params)
"""


@pytest.mark.parametrize("version", ["4.0.0", ""], ids=["of another version", "of this version"])
def test_an_mlflow_that_has_moved_its_tables_gets_requests(begun: Path, tmp_path: Path, version: str) -> None:
    opened(begun, tmp_path / "store")
    done = subprocess.run(
        [sys.executable, "-c", MOVED_TABLES, str(tmp_path / "store" / "mlflow.db"), version],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "SendsRequests {'rate': '0.1'}\n", done.stderr
