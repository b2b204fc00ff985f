"""Causes of faults: real signals, mounts, clocks, locks and damaged files, each at a chosen moment of a sweep.

A cause starts the sweep and strikes it. It leaves a command running, or one that has ended for the fault.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from moved_clock import MovedClock
from ray.cluster_utils import Cluster
from struck_sweep import FILE, StruckSweep

from command import ROOT
from core.model_files.checkpoint import newest_checkpoint
from data_pipeline.tokens.token_blocks import DamagedBlockError, open_prepared
from mlflow_server import MlflowServer
from patience import wait_until
from sweeps.records.trial_records import TrialStore

STOPPED_S = 60
"""Seconds for which a process stands still, or a database is locked."""
DRIVER = "driver"
WORKER, LANE, RAYLET, GCS = "RayTrainWorker", "Trainable", "raylet", "gcs_server"
"""Names of processes of Ray, as they give them."""
_A_DAY_S = 86_400
_CGROUPS = Path("/sys/fs/cgroup/memory")

Cause = Callable[[StruckSweep], None]


def killed(name: str) -> Cause:
    """A process gets SIGKILL while trial 2 trains."""

    def strike(sweep: StruckSweep) -> None:
        sweep.start_and_train()
        _process(sweep, name).send_signal(signal.SIGKILL)

    return strike


def server_killed(name: str) -> Cause:
    """A server of Ray gets SIGKILL while trial 2 trains; the command writes its results and says how to resume."""

    def strike(sweep: StruckSweep) -> None:
        killed(name)(sweep)
        assert sweep.end() == 2, sweep.output
        last = sweep.output.splitlines()[-1]
        assert f"Ray's process {name} on this machine has ended. " in last
        assert f"Then the same command resumes the sweep: pretune sweep {sweep.file}" in last
        assert json.loads((sweep.folder / "summary.json").read_text())["status"] == "interrupted"
        for result in ("trials.csv", "report.html", "EXPERIMENT.md"):
            assert (sweep.folder / result).exists()
        sweep.start()

    return strike


def stopped(name: str) -> Cause:
    """A process gets SIGSTOP while trial 2 trains, and SIGCONT later, unless Ray ended it meanwhile."""

    def strike(sweep: StruckSweep) -> None:
        sweep.start_and_train()
        process = _process(sweep, name)
        process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_S)
        if process.is_running():
            process.send_signal(signal.SIGCONT)

    return strike


def _process(sweep: StruckSweep, name: str) -> psutil.Process:
    return sweep.driver if name == DRIVER else sweep.process(name)


def killed_while(moment: Callable[[StruckSweep], bool], what: str) -> Cause:
    """The driver gets SIGKILL at this moment."""

    def strike(sweep: StruckSweep) -> None:
        sweep.start()
        sweep.wait(lambda: moment(sweep), what)
        sweep.driver.send_signal(signal.SIGKILL)

    return strike


def corpus_is_read(sweep: StruckSweep) -> bool:
    """Preparation is under way."""
    return any((sweep.results / "prepared").glob(".work-*"))


def lane_starts(sweep: StruckSweep) -> bool:
    """Trial 1 was handed to a lane that still starts."""
    return sweep.trial(1).exists()


def results_are_written(sweep: StruckSweep) -> bool:
    """The last trial has ended."""
    folder = sweep.trial(3)
    if not (folder / "trial.json").exists():
        return False
    return all(record.is_done for record in TrialStore(folder.parent).load_all())


# MLflow


@contextmanager
def _tracked_by_server(sweep: StruckSweep) -> Iterator[MlflowServer]:
    folder = sweep.results.parent / f"{sweep.results.name}-server"
    folder.mkdir()
    server = MlflowServer(folder)
    server.start()
    sweep.environment["MLFLOW_TRACKING_URI"] = server.uri
    try:
        yield server
    finally:
        sweep.at_end.append(server.kill)


def mlflow_killed(sweep: StruckSweep) -> None:
    """The MLflow server gets SIGKILL while trial 2 trains, and comes back after the sweep."""
    with _tracked_by_server(sweep) as server:
        sweep.start_and_train()
        server.kill()
        assert sweep.end() == 5, sweep.output
        server.start()
    sweep.continued_by = "same command, which sends what MLflow misses"
    sweep.start()


def mlflow_stopped(sweep: StruckSweep) -> None:
    """The MLflow server takes connections and answers none for a minute."""
    with _tracked_by_server(sweep) as server:
        sweep.start_and_train()
        server.stand_still()
        time.sleep(STOPPED_S)
        server.go_on()


def database_locked(sweep: StruckSweep) -> None:
    """Another program holds MLflow's SQLite file for a minute while trial 2 trains."""
    sweep.start_and_train()
    with closing(sqlite3.connect(sweep.results / "mlflow.db", timeout=60)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(STOPPED_S)
        connection.rollback()


# The machine


def clock_set_back(sweep: StruckSweep) -> None:
    """The clock of all processes stood a day ahead; it is set right while trial 2 trains."""
    clock = MovedClock(sweep.results.parent)
    clock.set_ahead(_A_DAY_S)
    sweep.environment |= clock.environment
    sweep.start_and_train()
    clock.set_ahead(0)


def killed_for_memory(sweep: StruckSweep) -> None:
    """The kernel's killer ends the worker of trial 2, whose control group has no memory left."""
    group = _CGROUPS / f"pretune-{os.getpid()}"
    if not os.access(_CGROUPS, os.W_OK) or not _is_made(group):
        pytest.skip("no right to make a control group of memory (version 1)")
    sweep.at_end.append(lambda: _remove(group))
    sweep.start_and_train()
    worker = sweep.process(WORKER)
    # Not one page more: memory that a process has already stays in the group where it was taken.
    (group / "memory.limit_in_bytes").write_text("0")
    (group / "cgroup.procs").write_text(str(worker.pid))
    sweep.wait(lambda: "oom_kill 1" in (group / "memory.oom_control").read_text(), "the kernel did not end the worker")


def _is_made(group: Path) -> bool:
    try:
        group.mkdir()
    except OSError:
        return False
    return True


def _remove(group: Path) -> None:
    if group.exists():
        group.rmdir()


def node_lost(sweep: StruckSweep) -> None:
    """The node that trains trial 2 is lost, and another one joins the cluster."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    sweep.at_end.append(cluster.shutdown)
    node = cluster.add_node(num_cpus=os.cpu_count())
    sweep.environment["RAY_ADDRESS"] = cluster.address
    sweep.start_and_train()
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=os.cpu_count())


# Files


def two_drivers(sweep: StruckSweep) -> None:
    """The same command is given again while trial 2 trains, in a driver that stands still for as long."""
    sweep.start_and_train()
    sweep.driver.send_signal(signal.SIGSTOP)
    second = subprocess.run(
        [sys.executable, "-m", "sweeps", "sweep", str(sweep.file), "--results", str(sweep.results)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    sweep.driver.send_signal(signal.SIGCONT)
    assert second.returncode == 2, second.stdout + second.stderr
    assert f"this sweep is running already (pid {sweep.driver.pid} on " in second.stderr


def checkpoint_cut(sweep: StruckSweep) -> None:
    """The machine lost power while a checkpoint was written: its files end at each byte of their headers.

    The checkpoint before stands beside it, because it is deleted last.
    """
    folder = _interrupted(sweep)
    whole = newest_checkpoint(folder)
    assert whole is not None
    newer = folder / "step-000000009999"
    for name in ("model.safetensors", "optimizer.safetensors", "progress.json"):
        shutil.copytree(whole, newer)
        data = (whole / name).read_bytes()
        header = 8 + int.from_bytes(data[:8], "little") if name.endswith(".safetensors") else len(data)
        for length in range(header):
            (newer / name).write_bytes(data[:length])
            assert newest_checkpoint(folder) == whole, (name, length)
        if name != "progress.json":
            shutil.rmtree(newer)
    sweep.start()


def reports_cut(sweep: StruckSweep) -> None:
    """The last line of a trial's reports ends at each of its bytes, as after a full disk or a lost machine."""
    file = _interrupted(sweep) / "reports.jsonl"
    store = TrialStore(file.parents[1])
    record = store.load_all()[1]
    reports, data = list(store.reports(record)), file.read_bytes()
    for length in range(data.rstrip().rindex(b"\n") + 1, len(data.rstrip())):
        file.write_bytes(data[:length])
        assert list(store.reports(record)) == reports[:-1], length
    file.write_bytes(data[: len(data) - 20])
    sweep.start()


def record_cut(sweep: StruckSweep) -> None:
    """The record of trial 2 ends at each of its bytes; its copy is read instead, also by the command."""
    file = _interrupted(sweep) / "trial.json"
    said: list[str] = []
    store, data = TrialStore(file.parents[1], say=said.append), file.read_bytes()
    records = store.load_all()
    for length in range(len(data.rstrip())):
        file.write_bytes(data[:length])
        assert store.load_all() == records, length
    assert len(said) == len(data.rstrip())
    sweep.start()
    sweep.wait(lambda: f"{file} is damaged: " in sweep.output, "no word about the damaged record")


def corpus_cut(sweep: StruckSweep) -> None:
    """A file of the prepared corpus ends at each byte of its header; the command names its folder, which is deleted."""
    _interrupted(sweep)
    (folder,) = (path for path in (sweep.results / "prepared").iterdir() if path.is_dir())
    file = min(folder.glob("train-*.arrow"))
    data = file.read_bytes()
    # The magic number, the length of the schema and the schema itself.
    for length in range(16 + int.from_bytes(data[12:16], "little")):
        file.write_bytes(data[:length])
        with pytest.raises(DamagedBlockError, match=f"{file} has {length:,} bytes"):
            open_prepared(folder)
    sweep.start()
    assert sweep.end() == 2, sweep.output
    assert f"delete {folder} and prepare again" in sweep.output
    _deleted_and_again(sweep, folder)


def _deleted_and_again(sweep: StruckSweep, folder: Path) -> None:
    """The damaged folder is deleted, as the message says, and the command given again."""
    shutil.rmtree(folder)
    sweep.continued_by = "the folder that it names is deleted, same command"
    sweep.start()


def _interrupted(sweep: StruckSweep) -> Path:
    """Folder of trial 2 of a sweep whose driver was killed while it trained."""
    sweep.start_and_train()
    sweep.kill()
    wait_until(lambda: not sweep.processes_left(), lambda: f"{sweep.processes_left()}")
    return sweep.trial(2)


def diverging(sweep: StruckSweep) -> None:
    """A fourth setting gives losses that are no numbers."""
    sweep.file.write_text(
        FILE.replace("[1e-3, 3e-3, 1e-2]", "[1e-3, 1e30, 3e-3, 1e-2]").replace("trials: 3", "trials: 4")
    )
    sweep.start()
