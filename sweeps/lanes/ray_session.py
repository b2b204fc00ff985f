"""Connects this process to Ray, and routes the output of Ray to the terminal or a log file."""

import importlib
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.job_config import JobConfig

from data_pipeline.schema.own_files import OwnLog, private_temp_folder
from data_pipeline.schema.redaction import RedactingFormatter
from sweeps.records.orphan_processes import MARK, driver_mark
from sweeps.records.results_folder import LOG_FILE, check_writable

_TEMP_CHARACTERS = 40
"""Longest path of Ray's folder: sockets below it have 65 characters more, of the 107 that the kernel allows."""


def connect() -> None:
    """Start Ray on this machine, or join the cluster of RAY_ADDRESS (as in a submitted job)."""
    # Ray Data warns there that its progress bars are off; preparation has its own.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    _set_environment()
    output: dict[str, Any] = {"log_to_driver": is_verbose(), "logging_level": _logging_level()}
    if has_cluster():
        ray.init(**output)
    else:
        _start_on_this_machine(output)


def _start_on_this_machine(output: dict[str, Any]) -> None:
    """Start Ray for this user alone: on the addresses of the machine itself, with its files in a private folder."""
    here: dict[str, Any] = {"address": "local", "num_cpus": os.cpu_count(), "include_dashboard": False}
    if "RAY_TMPDIR" not in os.environ:
        # Ray opens its own folder to everybody, so it lies in one that is closed.
        here["_temp_dir"] = str(private_temp_folder("ray", longest=_TEMP_CHARACTERS) / "r")
    if Path.cwd() != Path(__file__).parents[2]:
        here["job_config"] = _WithoutCurrentFolder()
    # Ray's switch for macOS and Windows, where firewalls ask about other addresses. It is read by `init` alone.
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(**here, **output)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


class _WithoutCurrentFolder(JobConfig):
    """Workers import no modules of the current folder, which Ray would prefer to those of Python and its packages.

    The folder may come from a stranger, and any file name of the standard library in it would run.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # Ray adds the current folder unless workers run in a copy of it.


def connect_while_importing(*modules: str) -> None:
    """Connect to Ray and import these modules at the same time, because Ray takes seconds to start."""
    _set_environment()  # Before the import of any module that reads it.

    def import_all() -> None:
        # A failing import raises again at its first use.
        with suppress(ImportError):
            for module in modules:
                importlib.import_module(module)

    importing = threading.Thread(target=import_all, name="imports")
    importing.start()
    try:
        connect()
    finally:
        importing.join()


def has_cluster() -> bool:
    """Whether Ray runs on a cluster (RAY_ADDRESS) and not on this machine alone."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _set_environment() -> None:
    """Set the environment variables that Ray reads."""
    # Tune and Train print each step on the terminal by default; the progress table replaces this.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's handling of Ctrl-C waits for every trial to save itself. Ours ends in seconds and resumes from the records.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Tune would write its own record of all trials every ten seconds. pretune never reads it, so write it at the end.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # Allow simultaneous starts of lanes; the searcher limits their number.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")
    # A stuck worker cannot shut down its process group, and the lane waits for that.
    os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A lane has some seven processes, most of them idle; on two cores Ray would warn about each beyond the eighth.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    os.environ[MARK] = driver_mark()
    if not has_cluster():
        # A local node is never preempted, and the watcher adds a process to the start of every lane.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def is_verbose() -> bool:
    """Whether Ray and its workers print on the terminal (`pretune sweep -v`)."""
    return bool(os.environ.get("PRETUNE_VERBOSE"))


def _logging_level() -> int:
    return logging.INFO if is_verbose() else logging.ERROR


def log_libraries_in(results_folder: Path) -> None:
    """Create the results folder, and log the output of Ray and other libraries to a file there.

    With `-v` the output stays on the terminal.

    Raises:
        ResultsError: The folder is not writable.
    """
    check_writable(results_folder)
    if is_verbose():
        return
    handler = OwnLog(results_folder / LOG_FILE, encoding="utf-8", delay=True)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    for name in ("ray", "ray.data", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
