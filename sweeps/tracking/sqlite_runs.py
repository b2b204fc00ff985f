"""Writes changes of many MLflow runs in one transaction of a SQLite file, into the tables of MLflow's own classes.

On a SQLite file each request to MLflow is three or four transactions that read back known values and wait for the disk.
The names imported here are internals of MLflow: `run_writer` imports this file only for a version whose tables are
verified by tests, and sends requests where the names moved.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Self

from mlflow.entities import DatasetInput, Metric
from mlflow.store.tracking.dbmodels.models import (
    SqlDataset,
    SqlInput,
    SqlInputTag,
    SqlLatestMetric,
    SqlMetric,
    SqlParam,
    SqlRun,
    SqlTag,
)
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.utils.uri import append_to_uri_path
from sqlalchemy import Table, select, tuple_, update
from sqlalchemy.dialects.sqlite import insert

from sweeps.tracking.run_changes import RunChange

_MAX_TAG_CHARACTERS = 8000
"""MLflow's limit for the value of a tag."""


class WritesTables:
    """Writes all runs in one transaction of a SQLite file, without reading back."""

    def __init__(self, client: MlflowClient, store: SqlAlchemyStore, experiment_id: str) -> None:
        self._client, self._store, self._experiment_id = client, store, experiment_id
        self._artifacts = str(client.get_experiment(experiment_id).artifact_location)
        self._datasets: dict[tuple[str, str], str] = {}
        """Id of each stored data set, by name and digest."""

    @classmethod
    def of(cls, client: MlflowClient, experiment_id: str) -> Self | None:
        """A writer to the client's store; None if the store is no SQLite file."""
        store = client._tracking_client.store
        if isinstance(store, SqlAlchemyStore) and store.db_type == "sqlite":
            return cls(client, store, experiment_id)
        return None

    def write(self, changes: Sequence[RunChange]) -> None:
        """Write all changes or none, except data sets of existing runs without any; this class creates no such runs."""
        new = [(uuid.uuid4().hex, change) for change in changes if change.run_id is None]
        known = [(change.run_id, change) for change in changes if change.run_id is not None]
        for run_id, change in known:
            if change.datasets:
                self._client.log_inputs(run_id, list(change.datasets))
        runs = [*new, *known]
        inputs = [self._inputs(run_id, change.datasets) for run_id, change in new if change.datasets]
        metrics = [row for run_id, change in runs for row in self._metrics(run_id, change.metrics)]
        with self._store.ManagedSessionMaker(read_only=False) as session:
            _insert(session, SqlRun, [self._run(run_id, change) for run_id, change in new])
            _insert(session, SqlTag, [row for run_id, change in runs for row in _tags(run_id, change)], replace=True)
            _insert(session, SqlParam, [row for run_id, change in runs for row in _params(run_id, change)])
            _insert(session, SqlInput, [row for rows, _ in inputs for row in rows])
            _insert(session, SqlInputTag, [row for _, rows in inputs for row in rows])
            _insert(session, SqlMetric, metrics)
            if metrics:
                session.execute(_NEWER_METRIC, _latest(metrics))
            for run_id, change in known:
                if change.status is not None:
                    ended = {} if change.ended_ms is None else {"end_time": change.ended_ms}
                    session.execute(
                        update(_table(SqlRun)).where(SqlRun.run_uuid == run_id).values(status=change.status, **ended)
                    )
        for run_id, change in new:
            change.run_id = run_id

    def _run(self, run_id: str, change: RunChange) -> dict[str, Any]:
        """Row of a run, as `SqlAlchemyStore.create_run` writes it."""
        return {
            "run_uuid": run_id,
            "name": change.name,
            "artifact_uri": append_to_uri_path(  # type: ignore[no-untyped-call]
                self._artifacts, run_id, SqlAlchemyStore.ARTIFACTS_FOLDER_NAME
            ),
            "experiment_id": int(self._experiment_id),
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "unknown",
            "status": change.status or "RUNNING",
            "start_time": change.started_ms,
            "end_time": change.ended_ms,
            "source_version": "",
            "lifecycle_stage": "active",
        }

    def _metrics(self, run_id: str, metrics: Iterable[Metric]) -> Iterable[dict[str, Any]]:
        for metric in metrics:
            is_nan, value = self._store.sanitize_metric_value(metric.value)
            yield {
                "run_uuid": run_id,
                "key": metric.key,
                "value": value,
                "timestamp": metric.timestamp,
                "step": metric.step,
                "is_nan": is_nan,
            }

    def _inputs(
        self, run_id: str, datasets: Sequence[DatasetInput]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows that connect a run with its data sets, and the rows of their tags."""
        inputs, tags = [], []
        for dataset in datasets:
            input_id = uuid.uuid4().hex
            ends = {"source_type": "DATASET", "destination_type": "RUN", "destination_id": run_id}
            inputs.append({"input_uuid": input_id, "source_id": self._id_of(dataset), **ends})
            tags += [{"input_uuid": input_id, "name": tag.key, "value": tag.value} for tag in dataset.tags]
        return inputs, tags

    def _id_of(self, one: DatasetInput) -> str:
        """Id of a data set that the run of the sweep reads already."""
        key = (one.dataset.name, one.dataset.digest)
        if key not in self._datasets:
            wanted: Any = select(SqlDataset.dataset_uuid).where(
                SqlDataset.experiment_id == int(self._experiment_id),
                tuple_(SqlDataset.name, SqlDataset.digest) == key,
            )
            with self._store.ManagedSessionMaker() as session:
                self._datasets[key] = str(session.execute(wanted).scalar_one())
        return self._datasets[key]


def _tags(run_id: str, change: RunChange) -> Iterable[dict[str, Any]]:
    name = {MLFLOW_RUN_NAME: change.name} if change.run_id is None else {}
    for key, value in chain(change.tags.items(), name.items()):
        yield {"run_uuid": run_id, "key": key, "value": value[:_MAX_TAG_CHARACTERS]}


def _params(run_id: str, change: RunChange) -> Iterable[dict[str, Any]]:
    return ({"run_uuid": run_id, "key": key, "value": value} for key, value in change.params.items())


def _latest(metrics: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The latest value of each metric of each run, by step, time and value, as MLflow defines it."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in metrics:
        metric = (row["run_uuid"], row["key"])
        if metric not in latest or _age(row) > _age(latest[metric]):
            latest[metric] = row
    return list(latest.values())


def _age(row: Mapping[str, Any]) -> tuple[int, int, float]:
    return row["step"], row["timestamp"], row["value"]


def _table(model: Any) -> Table:
    table = model.__table__
    assert isinstance(table, Table)
    return table


def _insert(session: Any, model: Any, rows: Sequence[Mapping[str, Any]], *, replace: bool = False) -> None:
    """What is there already stays, or is replaced: what was sent twice is there once."""
    if rows:
        session.execute(insert(_table(model)).prefix_with("OR REPLACE" if replace else "OR IGNORE"), rows)


def _newer_metric() -> Any:
    table = _table(SqlLatestMetric)
    statement = insert(table)
    new, order = statement.excluded, ("step", "timestamp", "value")
    return statement.on_conflict_do_update(
        index_elements=["key", "run_uuid"],
        set_={name: new[name] for name in (*order, "is_nan")},
        where=tuple_(*(new[name] for name in order)) > tuple_(*(table.c[name] for name in order)),
    )


_NEWER_METRIC = _newer_metric()
