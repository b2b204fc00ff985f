"""The MLflow store: its address, its availability, and the experiment that all sweeps share."""

import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from data_pipeline.files.machine_faults import machine_fault
from data_pipeline.files.own_files import own_lock, refuse_link
from data_pipeline.schema.redaction import has_user_information, redact_url
from data_pipeline.schema.user_errors import InputFault, first_line
from sweeps.tracking.final_values import PROJECT

EXPERIMENT = PROJECT
_SQLITE = "sqlite:///"


class TrackingError(InputFault):
    """The MLflow store cannot be used; the message gives its address and a remedy."""


def store_uri(results_folder: Path) -> str:
    """Address of the store: that of MLFLOW_TRACKING_URI, or a SQLite file next to the results.

    Raises:
        TrackingError: MLFLOW_TRACKING_URI has a password in a place where it cannot be used or kept secret.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return f"sqlite:///{results_folder.absolute() / 'mlflow.db'}"
    if given.startswith("http") and has_user_information(given):
        # MLflow prints the address of a server and writes it into its records.
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={redact_url(given)} holds a user or a password; remove them from it, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if has_user_information(given) and given.partition("?")[0].count("@") > 1:
        # SQLAlchemy would take the end of the password for a host, and name it in its errors.
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={redact_url(given)} has more than one @; write an @ in the password as %40"
        )
    return given


def make_quick() -> None:
    """Give MLflow short timeouts and little output; variables already in the environment win."""
    # MLflow sends usage data unless told not to, and reports each table of a new SQLite file.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Otherwise MLflow prints two lines for every run that ends on a server.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It logs the traceback of each database error that it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # Hide the warning about a missing transformers: only serving needs it, not training.
    logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)
    # By default MLflow retries each request for many minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


class MlflowStore:
    """An open MLflow store."""

    def __init__(self, results_folder: Path, *, say: Callable[[str], None] = lambda _: None) -> None:
        """Open the store; an unusable one fails here and not after hours of training.

        Args:
            say: Called with a line if the experiment had to be restored.

        Raises:
            TrackingError: The store does not answer or cannot be written.
        """
        make_quick()
        self.uri = store_uri(results_folder)
        self._file = _file_of(self.uri)
        self._opened = (-1, -1)
        """Device and number of that file."""
        with self.explained(), _patience(timeout_s=5, retries=1), _one_at_a_time(results_folder):
            if self._file is not None:
                _make_whole(self._file)
            self.client = MlflowClient(self.uri)
            self.experiment_id = self._find_or_create_experiment(results_folder, say)

    @property
    def name(self) -> str:
        """Name of the store for messages."""
        return f"MLflow at {redact_url(self.uri)}"

    def check_file(self) -> None:
        """Check that the SQLite file, if the store is one, is still there: SQLite would begin a new one.

        Raises:
            FileNotFoundError: It is gone.
        """
        if self._file is None:
            return
        found = self._file.stat()
        if (found.st_dev, found.st_ino) != self._opened:
            # A copy was brought back; open connections are to the file that was there before.
            self._opened = (found.st_dev, found.st_ino)
            engine = getattr(self.client._tracking_client.store, "engine", None)
            if engine is not None:
                engine.dispose()

    def reason_to_wait(self, error: Exception) -> str:
        """Why an error will pass with time or the user's help, in words; empty if the store refuses the content."""
        if self._file is not None and not self._file.exists():
            return "its file is gone"
        fault = machine_fault(error)
        # Another disk may be the one that is full: the winner is copied to the temporary folder first.
        return "" if fault is None else f"{fault.place}: {fault.reason}" if fault.place else fault.reason

    def answers(self) -> bool:
        """Whether the store responds now; takes at most some seconds."""
        try:
            self.check_file()
            with _patience(timeout_s=5, retries=0):
                self.client.get_experiment(self.experiment_id)
        except Exception:  # Any failure means that the store is not available.
            return False
        return True

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn MLflow's errors in the block into a TrackingError with a remedy."""
        try:
            yield
        except InputFault:
            raise
        except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
            fault = machine_fault(error, near=self._file)
            if fault is not None:
                raise TrackingError(f"{self.name} cannot be used: {fault}") from error
            remedy = (
                "Start that server, or unset MLFLOW_TRACKING_URI to record in a file next to the results."
                if _is_given()
                else "Move that file away: a new one is begun, and each sweep is recorded again by its own command."
            )
            raise TrackingError(f"{self.name} cannot be used: {_in_words(error)}. {remedy}") from error

    def _find_or_create_experiment(self, results_folder: Path, say: Callable[[str], None]) -> str:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            if is_deleted(experiment) and not _is_given():
                # Nothing can be recorded in it, and its name stays taken.
                self.client.restore_experiment(experiment.experiment_id)
                say(f"{self.name}: the experiment {EXPERIMENT} was deleted; it is restored with its runs")
            else:
                refuse_deleted(experiment, self.uri)
            return str(experiment.experiment_id)
        # A server sets its artifact location itself; a local SQLite file needs one.
        is_local = self.uri.startswith("sqlite:")
        location = (results_folder.absolute() / "mlartifacts").as_uri() if is_local else None
        # Without this tag MLflow 3 opens the experiment on its pages for agents and prompts.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))
        except MlflowException:
            # Another sweep created it at the same time.
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
            return str(experiment.experiment_id)


def is_deleted(experiment: Experiment) -> bool:
    """Whether an experiment was deleted on MLflow's pages, where it can be restored for some time."""
    return bool(experiment.lifecycle_stage == LifecycleStage.DELETED)


def refuse_deleted(experiment: Experiment, uri: str) -> None:
    """Check that an experiment can be used.

    Args:
        uri: Address of its store.

    Raises:
        TrackingError: It was deleted; the message has the command that restores it.
    """
    if is_deleted(experiment):
        # An address that the user has set is known to their shell, and may hold a secret.
        address = "" if _is_given() else f"MLFLOW_TRACKING_URI={shlex.quote(uri)} "
        raise TrackingError(
            f"MLflow at {redact_url(uri)}: the experiment {EXPERIMENT} was deleted there. To restore it with its runs: "
            f"{address}mlflow experiments restore -x {experiment.experiment_id}"
        )


def _is_given() -> bool:
    """Whether the user has chosen the store, which others may use, too."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def _file_of(uri: str) -> Path | None:
    """The SQLite file at an address; None for another store."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def _make_whole(file: Path) -> None:
    """Create the SQLite file with all tables, or not at all: a process killed here leaves no half-made file."""
    refuse_link(file)
    if file.exists():
        return
    partial = file.with_name(f".new-{file.name}")
    for left in file.parent.glob(f"{partial.name}*"):
        left.unlink()
    MlflowClient(f"sqlite:///{partial}").get_experiment_by_name(EXPERIMENT)
    partial.rename(file)


def _one_at_a_time(results_folder: Path) -> FileLock:
    # MLflow creates the tables of a new SQLite file without a lock: two sweeps starting together would conflict.
    return own_lock(results_folder / ".mlflow.lock")


@contextmanager
def _patience(*, timeout_s: int, retries: int) -> Iterator[None]:
    # By default MLflow retries for many minutes; a missing server must be reported at once.
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


def _in_words(error: BaseException) -> str:
    text = str(error).strip()
    if "Max retries exceeded" in text or "timed out" in text:
        return "it does not answer"
    return first_line(error)
