"""Writes changes of MLflow runs: request by request to a server, or many at once to a SQLite file.

A change of a run takes four requests. On a SQLite file each request is three or four transactions that read back known
values and wait for the disk; there the changes of many runs go into one transaction of plain inserts (sqlite_runs.py).
Both ways write the same rows.
Of a thousand instant trials in a SQLite file, each of the last hundred takes 37 ms of the driver's processor time by
requests and 2.0 ms by the tables (tests/benchmarks/mlflow_writer.py); its rank at the end adds 7.8 and 0.1 ms. The rest
of the driver takes 9 to 18 ms a trial, so requests alone exceed the 20 ms that a trial may cost.
"""

from collections.abc import Sequence
from contextlib import suppress

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.tracking import MlflowClient

from sweeps.tracking.run_changes import RunChange, RunWriter

_TABLES_OF = "3.17."
"""MLflow versions whose tables sqlite_runs.py writes, as verified by tests; other versions get requests."""


def run_writer(client: MlflowClient, experiment_id: str) -> RunWriter:
    """The fastest writer for the client's store and for this version of MLflow."""
    writer: RunWriter | None = None
    if mlflow.__version__.startswith(_TABLES_OF):
        # The tables are internals of MLflow. Where a version moves them, requests write the same rows.
        with suppress(ImportError, AttributeError):
            from sweeps.tracking.sqlite_runs import WritesTables

            writer = WritesTables.of(client, experiment_id)
    return writer or SendsRequests(client, experiment_id)


class SendsRequests:
    """Writes run by run through MLflow's client, to any store."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self._client, self._experiment_id = client, experiment_id

    def write(self, changes: Sequence[RunChange]) -> None:
        """Write the changes one by one."""
        for change in changes:
            self._write(change)

    def _write(self, change: RunChange) -> None:
        tags = dict(change.tags)
        is_new = change.run_id is None
        if is_new:
            run = self._client.create_run(
                self._experiment_id, start_time=change.started_ms, tags=tags, run_name=change.name
            )
            change.run_id, tags = str(run.info.run_id), {}
        assert change.run_id is not None
        if change.datasets:
            self._client.log_inputs(change.run_id, list(change.datasets))
        # One request if MLflow's limits allow; its client splits it otherwise. The status follows last, so that a run
        # that has ended is complete.
        self._client.log_batch(
            change.run_id,
            metrics=change.metrics,
            params=[Param(name, value) for name, value in change.params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        if change.ended_ms is not None:
            self._client.set_terminated(change.run_id, change.status, end_time=change.ended_ms)
        elif change.status is not None and not is_new:
            self._client.update_run(change.run_id, status=change.status)
