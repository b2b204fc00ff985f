"""The MLflow store: where it is, whether it answers, the experiment that all sweeps share."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_pipeline.schema.user_errors import InputFault, first_line

EXPERIMENT = "pretune"


class TrackingError(InputFault):
    """The MLflow store cannot be used; the message says where it is and what to do."""


def store_uri(results_folder: Path) -> str:
    """Where runs are recorded: the server of MLFLOW_TRACKING_URI, or a SQLite file next to the results."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results_folder.absolute() / 'mlflow.db'}"


def make_quick() -> None:
    """Have MLflow answer soon and say little, where the environment does not ask for something else."""
    # MLflow sends usage data unless told not to, and reports each table of a new SQLite file.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # It would print two lines on every run that ends on a server.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # That transformers is not here, which serves a registered model and trains none, is no news to who sweeps.
    logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)
    # MLflow's own default is to try each request for many minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


class MlflowStore:
    """A store that has answered."""

    def __init__(self, results_folder: Path) -> None:
        """Open the store, and fail now rather than after hours of training.

        Raises:
            TrackingError: The store does not answer or cannot be written.
        """
        make_quick()
        self.uri = store_uri(results_folder)
        with self.explained(), _patience(timeout_s=5, retries=1), _one_at_a_time(results_folder):
            if self.uri.startswith("sqlite:///"):
                _make_whole(Path(self.uri.removeprefix("sqlite:///")))
            self.client = MlflowClient(self.uri)
            self.experiment_id = self._find_or_create_experiment(results_folder)

    @property
    def name(self) -> str:
        """The store in a message."""
        return f"MLflow at {without_password(self.uri)}"

    def answers(self) -> bool:
        """Whether the store is there now; takes seconds at most."""
        try:
            with _patience(timeout_s=5, retries=0):
                self.client.get_experiment(self.experiment_id)
        except Exception:  # However it fails, it does not answer.
            return False
        return True

    @contextmanager
    def explained(self) -> Iterator[None]:
        """An error of MLflow becomes a TrackingError that says what to do."""
        try:
            yield
        except (MlflowException, OSError, ValueError) as error:
            raise TrackingError(
                f"{self.name} cannot be used: {_in_words(error)}. Start that server, or "
                "unset MLFLOW_TRACKING_URI to record in a file next to the results."
            ) from error

    def _find_or_create_experiment(self, results_folder: Path) -> str:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        # A server knows where its artifacts go; a local SQLite file does not.
        is_local = self.uri.startswith("sqlite:")
        location = (results_folder.absolute() / "mlartifacts").as_uri() if is_local else None
        # Without this tag MLflow 3 opens the experiment on its pages for agents and prompts.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))
        except MlflowException:
            # Another sweep that starts at the same time was first.
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
            return str(experiment.experiment_id)


def _make_whole(file: Path) -> None:
    """A new SQLite file with all its tables, or none: one that a killed process left half made is of no use."""
    if file.exists():
        return
    partial = file.with_name(f".new-{file.name}")
    for left in file.parent.glob(f"{partial.name}*"):
        left.unlink()
    MlflowClient(f"sqlite:///{partial}").get_experiment_by_name(EXPERIMENT)
    partial.rename(file)


def _one_at_a_time(results_folder: Path) -> FileLock:
    # MLflow makes the tables of a new SQLite file without a lock: two sweeps that begin together make half of each.
    return FileLock(results_folder / ".mlflow.lock")


@contextmanager
def _patience(*, timeout_s: int, retries: int) -> Iterator[None]:
    # MLflow's default is to try for many minutes; that there is no server must show at once.
    wanted = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def without_password(text: str) -> str:
    """The text as it may be shown, whatever addresses stand in it."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _in_words(error: BaseException) -> str:
    text = str(error).strip()
    if "Max retries exceeded" in text or "timed out" in text:
        return "it does not answer"
    return without_password(first_line(error))
