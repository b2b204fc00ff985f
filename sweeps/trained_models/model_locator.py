"""Locates a model by its name: a folder, a run of MLflow, or a version in the model registry."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.model_files.given_folder import GIVEN_FILE, holds_given
from data_pipeline.schema.redaction import redact_url
from data_pipeline.schema.user_errors import first_line
from sweeps.records.results_folder import ResultsError, ended_sweeps

_RUNS, _MODELS = "runs:/", "models:/"
_SUMMARY = "summary.json"
"""Artifact of a sweep's run."""


@dataclass(frozen=True)
class LocatedModel:
    """Folder of a model, and its prepared corpus."""

    folder: Path
    prepared: Path | None = None
    """The prepared corpus that MLflow names; None if it is not on this machine, or for a folder."""


def is_of_mlflow(name: str) -> bool:
    """Whether a name is an address in MLflow."""
    return name.startswith((_RUNS, _MODELS))


@contextmanager
def model_at(name: str, results_folder: Path) -> Iterator[LocatedModel]:
    """A local folder with the model of `name`; it exists while the block runs.

    Args:
        name: A folder; the name of a sweep or training, for its newest results with a model; `runs:/<run id>` of a
            sweep or of its best trial; `models:/<name>`, the newest version, `models:/<name>/<version>` or
            `models:/<name>@<alias>`.
        results_folder: The folder with the MLflow store, unless MLFLOW_TRACKING_URI names a server.

    Raises:
        ResultsError: MLflow lacks the model, or does not answer.
    """
    if not is_of_mlflow(name):
        yield LocatedModel(_named(name, results_folder) or Path(name))
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield _fetched(name, results_folder, scratch)


def _named(name: str, results_folder: Path) -> Path | None:
    """The newest results with a model of a sweep or training of this name; None without any, or for a path."""
    if Path(name).exists() or Path(name).name != name:
        return None
    with_model = (
        folder
        for folder, _ in ended_sweeps(results_folder, name)
        if (folder / "best" / "config.json").is_file() or holds_given(folder / "best")
    )
    return next(with_model, None)


def _fetched(name: str, results_folder: Path, scratch: str) -> LocatedModel:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from sweeps.tracking.mlflow_store import make_quick, store_uri

    uri = store_uri(results_folder)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ResultsError(
            f"{name}: there is no MLflow store in {results_folder}. Give --results FOLDER, or set MLFLOW_TRACKING_URI."
        )
    make_quick()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        client = MlflowClient(uri)
        found = _in_run(client, name) if name.startswith(_RUNS) else _in_registry(client, name)
        fetched = Path(download_artifacts(artifact_uri=found.source, tracking_uri=uri, dst_path=scratch))
        prepared = _prepared(client, found.run_id, results_folder, scratch)
    except (MlflowException, OSError) as error:
        raise ResultsError(f"{name} cannot be fetched from MLflow at {redact_url(uri)}: {first_line(error)}") from error
    models = sorted(path.parent for path in fetched.rglob(GIVEN_FILE))
    models += sorted(
        path.parent for path in fetched.rglob("config.json") if (path.parent / "model.safetensors").is_file()
    )
    if not models:
        raise ResultsError(f"{name} holds no model of pretune: no config.json with model.safetensors beside it")
    return LocatedModel(models[0], prepared)


@dataclass(frozen=True)
class _Source:
    source: str
    """Address of the artifact."""
    run_id: str
    """Run of the sweep."""


def _prepared(client, run_id: str, results_folder: Path, scratch: str) -> Path | None:  # type: ignore[no-untyped-def]
    """The prepared corpus of a sweep's run, at its original path or among these results; None if it is not here."""
    if not any(one.path == _SUMMARY for one in client.list_artifacts(run_id)):
        return None
    summary = Path(client.download_artifacts(run_id, _SUMMARY, scratch))
    data = json.loads(summary.read_text(encoding="utf-8")).get("data") or {}
    if "folder" not in data:
        return None
    folder = Path(data["folder"])
    folders = (folder, results_folder.absolute() / folder.parent.name / folder.name)
    return next((one for one in folders if one.is_dir()), None)


def _in_run(client, name: str) -> _Source:  # type: ignore[no-untyped-def]  # MLflow is imported when it is needed.
    from sweeps.tracking.mlflow_model import ARTIFACT

    run_id, _, path = name.removeprefix(_RUNS).partition("/")
    run = client.get_run(run_id)
    parent = run.data.tags.get("mlflow.parentRunId")
    if parent and not path:
        sweep = client.get_run(parent)
        best = sweep.data.tags.get("pretune.best_trial")
        if best != run.info.run_name:
            known = f"; the best is {best}, runs:/{parent}" if best else ""
            raise ResultsError(f"{name} is {run.info.run_name}; only the best trial keeps its model{known}")
        run = sweep
    return _Source(f"{str(run.info.artifact_uri).rstrip('/')}/{path or ARTIFACT}", run.info.run_id)


def _in_registry(client, name: str) -> _Source:  # type: ignore[no-untyped-def]  # As above.
    name, _, version = name.removeprefix(_MODELS).partition("/")
    name, _, alias = name.partition("@")
    if alias:
        found = client.get_model_version_by_alias(name, alias)
        return _Source(str(found.source), str(found.run_id))
    if version:
        found = client.get_model_version(name, version)
        return _Source(str(found.source), str(found.run_id))
    versions = client.search_model_versions(f"name = '{name}'")
    if not versions:
        known = ", ".join(sorted(model.name for model in client.search_registered_models())) or "none"
        raise ResultsError(f"{name}: the registry has no model of this name; it has: {known}")
    newest = max(versions, key=lambda one: int(one.version))
    return _Source(str(newest.source), str(newest.run_id))
