"""Changes of MLflow runs, brought to the store: request after request, or many at once where that is a SQLite file.

A server takes a run's change in four requests; of a SQLite file the changes of many runs go in one transaction of plain
inserts (sqlite_runs.py). Both leave the same rows behind.
"""

from collections.abc import Sequence
from contextlib import suppress

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.tracking import MlflowClient

from sweeps.tracking.run_changes import RunChange, RunWriter

_TABLES_OF = "3.17."
"""MLflow's versions whose tables are known here, and proven by tests to be filled as it does; others get requests."""


def run_writer(client: MlflowClient, experiment_id: str) -> RunWriter:
    """The cheapest that the client's store and MLflow's version allow."""
    writer: RunWriter | None = None
    if mlflow.__version__.startswith(_TABLES_OF):
        # The tables are MLflow's own affair. Where it has moved them, requests bring the same, only later.
        with suppress(ImportError, AttributeError):
            from sweeps.tracking.sqlite_runs import WritesTables

            writer = WritesTables.of(client, experiment_id)
    return writer or SendsRequests(client, experiment_id)


class SendsRequests:
    """One run after another through MLflow's client, to any store."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self._client, self._experiment_id = client, experiment_id

    def write(self, changes: Sequence[RunChange]) -> None:
        """One after another."""
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
        # All in one request, as far as MLflow's limits allow, which its client sees to. The status comes after it: a
        # run that has ended, with the outcome of its trial, lacks nothing.
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
