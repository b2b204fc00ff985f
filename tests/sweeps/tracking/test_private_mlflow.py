"""Contracts with what MLflow does not promise: where each name is and what it does for us.

That rows written with them equal those that MLflow writes is shown in test_mlflow_runs.py.
"""

import math
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import text

from private_names import check_contract, names_of, resolved

STORE = "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore"
COLUMNS = {
    "SqlDataset": "dataset_uuid experiment_id name digest",
    "SqlInput": "input_uuid source_type source_id destination_type destination_id",
    "SqlInputTag": "input_uuid name value",
    "SqlLatestMetric": "run_uuid key value timestamp step is_nan",
    "SqlMetric": "run_uuid key value timestamp step is_nan",
    "SqlParam": "run_uuid key value",
    "SqlRun": "run_uuid name artifact_uri experiment_id source_type source_name entry_point_name user_id status "
    "start_time end_time source_version lifecycle_stage",
    "SqlTag": "run_uuid key value",
}
"""Of each table those that we fill."""


def has_columns(table: str) -> None:
    found = {column.name for column in resolved(f"mlflow.store.tracking.dbmodels.models.{table}").__table__.columns}
    missing = set(COLUMNS[table].split()) - found
    assert not missing, f"no columns {sorted(missing)}"


def is_the_store_of_a_client_of_sqlite(client: mlflow.MlflowClient) -> None:
    assert isinstance(client._tracking_client.store, resolved(STORE))


def is_sqlite(client: mlflow.MlflowClient) -> None:
    assert client._tracking_client.store.db_type == "sqlite"


def gives_sessions(client: mlflow.MlflowClient) -> None:
    store = client._tracking_client.store
    with store.ManagedSessionMaker(read_only=False) as session:
        assert session.execute(text("select count(*) from runs")).scalar_one() >= 0
    with store.ManagedSessionMaker() as session:
        assert session.execute(text("select 1")).scalar_one() == 1


def tells_numbers_from_none(client: mlflow.MlflowClient) -> None:
    store = client._tracking_client.store
    assert store.sanitize_metric_value(1.5) == (False, 1.5)
    assert store.sanitize_metric_value(math.nan) == (True, 0)


def gives_the_place_of_artifacts(client: mlflow.MlflowClient) -> None:
    experiment = client.create_experiment(uuid.uuid4().hex, artifact_location="file:///somewhere")
    run = client.create_run(experiment).info
    append, folder = resolved("mlflow.utils.uri.append_to_uri_path"), resolved(STORE).ARTIFACTS_FOLDER_NAME
    assert append("file:///somewhere", run.run_id, folder) == run.artifact_uri


def is_the_tag_of_a_runs_name(client: mlflow.MlflowClient) -> None:
    run = client.create_run(client.create_experiment(uuid.uuid4().hex), run_name="named")
    assert run.data.tags[resolved("mlflow.utils.mlflow_tags.MLFLOW_RUN_NAME")] == "named"


def is_the_code_of_a_name_that_is_taken(client: mlflow.MlflowClient) -> None:
    name = uuid.uuid4().hex
    client.create_registered_model(name)
    with pytest.raises(MlflowException) as caught:
        client.create_registered_model(name)
    code = resolved("mlflow.protos.databricks_pb2.RESOURCE_ALREADY_EXISTS")
    assert caught.value.error_code == resolved("mlflow.protos.databricks_pb2.ErrorCode").Name(code)


def logs_under_its_own_name(_: mlflow.MlflowClient) -> None:
    module = resolved("mlflow.utils.requirements_utils")
    assert module._logger.name == module.__name__


CONTRACTS: dict[str, Callable[[mlflow.MlflowClient], object]] = {
    "mlflow.MlflowClient._tracking_client": is_the_store_of_a_client_of_sqlite,
    "mlflow.protos.databricks_pb2.ErrorCode": is_the_code_of_a_name_that_is_taken,
    "mlflow.protos.databricks_pb2.RESOURCE_ALREADY_EXISTS": is_the_code_of_a_name_that_is_taken,
    "mlflow.store.tracking.dbmodels.models.SqlDataset": lambda _: has_columns("SqlDataset"),
    "mlflow.store.tracking.dbmodels.models.SqlInput": lambda _: has_columns("SqlInput"),
    "mlflow.store.tracking.dbmodels.models.SqlInputTag": lambda _: has_columns("SqlInputTag"),
    "mlflow.store.tracking.dbmodels.models.SqlLatestMetric": lambda _: has_columns("SqlLatestMetric"),
    "mlflow.store.tracking.dbmodels.models.SqlMetric": lambda _: has_columns("SqlMetric"),
    "mlflow.store.tracking.dbmodels.models.SqlParam": lambda _: has_columns("SqlParam"),
    "mlflow.store.tracking.dbmodels.models.SqlRun": lambda _: has_columns("SqlRun"),
    "mlflow.store.tracking.dbmodels.models.SqlTag": lambda _: has_columns("SqlTag"),
    "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore": is_the_store_of_a_client_of_sqlite,
    "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore.ARTIFACTS_FOLDER_NAME": gives_the_place_of_artifacts,
    "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore.ManagedSessionMaker": gives_sessions,
    "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore.db_type": is_sqlite,
    "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore.sanitize_metric_value": tells_numbers_from_none,
    "mlflow.utils.mlflow_tags.MLFLOW_RUN_NAME": is_the_tag_of_a_runs_name,
    "mlflow.utils.requirements_utils": logs_under_its_own_name,
    "mlflow.utils.uri.append_to_uri_path": gives_the_place_of_artifacts,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> mlflow.MlflowClient:
    path: Path = tmp_path_factory.mktemp("store") / "mlflow.db"
    return mlflow.MlflowClient(f"sqlite:///{path}")


@pytest.mark.parametrize("name", names_of("mlflow"))
def test_a_private_name_of_mlflow_is_where_and_what_we_need(name: str, client: mlflow.MlflowClient) -> None:
    check_contract(name, {known: partial(contract, client) for known, contract in CONTRACTS.items()})
