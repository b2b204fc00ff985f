"""The faults of the table, each with its cause and the work that it strikes."""

from dataclasses import dataclass

import disk_faults as disk
import fault_causes as by


@dataclass(frozen=True)
class Fault:
    """One fault of the table."""

    name: str
    running: str
    """Work of the sweep at that moment, in words."""
    cause: by.Cause
    uses_prepared_corpus: bool = True
    """False: the sweep prepares its corpus itself."""


_TRIAL = "trial 2 of 3"

FAULTS = (
    Fault(
        "driver: kill -9", "preparation of the corpus", by.killed_while(by.corpus_is_read, "no corpus is read"), False
    ),
    Fault("driver: kill -9 at the first trial", "start of the lane", by.killed_while(by.lane_starts, "no trial")),
    Fault("driver: kill -9 in training", _TRIAL, by.killed(by.DRIVER)),
    Fault("driver: kill -9 at the end", "results are written", by.killed_while(by.results_are_written, "no end")),
    Fault("lane: kill -9", _TRIAL, by.killed(by.LANE)),
    Fault("worker: kill -9", _TRIAL, by.killed(by.WORKER)),
    Fault("raylet: kill -9", _TRIAL, by.server_killed(by.RAYLET)),
    Fault("GCS: kill -9", _TRIAL, by.server_killed(by.GCS)),
    Fault("MLflow server: kill -9, back after the sweep", _TRIAL, by.mlflow_killed),
    Fault("driver: SIGSTOP for 60 s", _TRIAL, by.stopped(by.DRIVER)),
    Fault("lane: SIGSTOP for 60 s", _TRIAL, by.stopped(by.LANE)),
    Fault("worker: SIGSTOP for 60 s", _TRIAL, by.stopped(by.WORKER)),
    Fault("raylet: SIGSTOP for 60 s", _TRIAL, by.stopped(by.RAYLET)),
    Fault("GCS: SIGSTOP for 60 s", _TRIAL, by.stopped(by.GCS)),
    Fault("MLflow server: SIGSTOP for 60 s", _TRIAL, by.mlflow_stopped),
    Fault("disk full: results", _TRIAL, disk.results_full),
    Fault("disk full: TMPDIR", _TRIAL, disk.temporary_full),
    Fault("disk full: MLflow's store", _TRIAL, disk.tracking_full),
    Fault("disk full: Ray's files", _TRIAL, disk.ray_full),
    Fault("file system of the results: read-only", _TRIAL, disk.read_only),
    Fault("clock: set back by a day", _TRIAL, by.clock_set_back),
    Fault("newest checkpoint: cut at each byte of its headers", _TRIAL, by.checkpoint_cut),
    Fault("trial.json: cut at each byte", _TRIAL, by.record_cut),
    Fault("reports.jsonl: last line cut at each byte", _TRIAL, by.reports_cut),
    Fault("token blocks: cut at each byte of the header", _TRIAL, by.corpus_cut),
    Fault("second driver", _TRIAL, by.two_drivers),
    Fault("node lost", _TRIAL, by.node_lost),
    Fault("MLflow's database locked for 60 s", _TRIAL, by.database_locked),
    Fault("loss not a number", "a fourth trial", by.diverging),
    Fault("worker: killed by the kernel for memory", _TRIAL, by.killed_for_memory),
)
