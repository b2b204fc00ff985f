"""Connects this process to Ray, and routes the output of Ray to the terminal or a log file."""

import importlib
import logging
import os
import resource
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.job_config import JobConfig

from data_pipeline.files.own_files import private_temp_folder
from data_pipeline.schema.user_errors import first_line
from sweeps.lanes.cluster_address import ClusterError, check_address
from sweeps.lanes.library_logs import is_verbose
from sweeps.records.orphan_processes import MARK, driver_mark

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable of a submitted job, whose working folder Ray itself hands to the workers."""
_FEWEST_FILES, _ENOUGH_FILES = 256, 4096
"""Open files of a process: Ray's own have 50 to 60 before the first lane and end without a word at 64; plenty."""
_SOCKET_BYTES = 107
"""Longest path of a socket on Linux."""
_BEGUN: set[str] = set()
"""Addresses of the Rays that `connect` began or joined."""
_TEMP_CHARACTERS = 40
"""Longest path of Ray's folder: sockets below it have 65 characters more, of the 107 that the kernel allows."""


def connect() -> None:
    """Start Ray on this machine, or join the cluster of RAY_ADDRESS (as in a submitted job).

    Raises:
        ClusterError: There is no such cluster, or Ray does not start.
    """
    # Ray Data warns there that its progress bars are off; preparation has its own.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    _set_environment()
    if ray.is_initialized():
        _refuse_client()
        return
    output: dict[str, Any] = {"log_to_driver": is_verbose(), "logging_level": _logging_level()}
    if has_cluster():
        _join(os.environ["RAY_ADDRESS"], output)
    else:
        _start_on_this_machine(output)
    _BEGUN.add(ray.get_runtime_context().gcs_address)


def disconnect() -> None:
    """Leave Ray, or end it, if `connect` began it; a Ray that this process had before stays."""
    address = ray.get_runtime_context().gcs_address if ray.is_initialized() else ""
    if address in _BEGUN:
        _BEGUN.remove(address)
        ray.shutdown()


def _refuse_client() -> None:
    if ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
        raise ClusterError(
            "this process talks to Ray through Ray Client (ray.init('ray://...')), which cannot run a sweep; submit "
            "the script with ray job submit, or start Python on the cluster and call ray.init(address='auto')"
        )


def _join(address: str, output: dict[str, Any]) -> None:
    check_address(address)
    if not _is_in_own_checkout() and _JOB not in os.environ:
        output = output | {"job_config": _WithoutCurrentFolder()}
    try:
        ray.init(**output)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(
            f"RAY_ADDRESS={address}: this process cannot join that cluster: {first_line(error).rstrip('.')}. Check "
            "with ray status, or unset RAY_ADDRESS to start Ray on this machine."
        ) from error


def _start_on_this_machine(output: dict[str, Any]) -> None:
    """Start Ray for this user alone: on the addresses of the machine itself, with its files in a private folder."""
    _allow_open_files()
    here: dict[str, Any] = {"address": "local", "num_cpus": os.cpu_count(), "include_dashboard": False}
    given = os.environ.get("RAY_TMPDIR")
    longest = _SOCKET_BYTES - len(f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    if given and len(os.fsencode(given)) > longest:
        raise ClusterError(
            f"RAY_TMPDIR={given}: has {len(os.fsencode(given))} bytes, and Ray's sockets below it allow {longest}; "
            "name a shorter folder, or unset RAY_TMPDIR"
        )
    if not given:
        # Ray opens its own folder to everybody, so it lies in one that is closed.
        here["_temp_dir"] = str(private_temp_folder("ray", longest=_TEMP_CHARACTERS) / "r")
    if not _is_in_own_checkout():
        here["job_config"] = _WithoutCurrentFolder()
    _set_token()
    # Ray's switch for macOS and Windows, where firewalls ask about other addresses. It is read by `init` alone.
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _processes_ignore_hangup():
            _init_twice(here | output)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _allow_open_files() -> None:
    """Let this process and those of Ray open as many files as they need.

    Raises:
        ClusterError: The system allows too few: Ray's processes would end in the middle of a sweep, without a word.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else hard
    if most < _FEWEST_FILES:
        raise ClusterError(
            f"a process may have {most:,} files open here, and Ray needs {_FEWEST_FILES:,}. Raise the limit "
            f"(ulimit -n {_ENOUGH_FILES}). Then run the same command again."
        )
    if 0 <= soft < min(most, _ENOUGH_FILES):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _ENOUGH_FILES), hard))


@contextmanager
def _processes_ignore_hangup() -> Iterator[None]:
    """Let processes that start in the block ignore SIGHUP.

    A closed terminal sends it to all processes of the command. Without its Ray the driver could not end the sweep.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets signals in its main thread alone.
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _init_twice(arguments: dict[str, Any]) -> None:
    """`ray.init`; once more if it fails, because Ray gives its processes 30 s, which a busy machine may exceed.

    Processes that this one starts meanwhile count as Ray's, and end with a start that fails.

    Raises:
        ClusterError: It failed twice.
    """
    children = psutil.Process().children()
    for is_last in (False, True):
        try:
            ray.init(**arguments)
            return
        except OSError:
            raise  # The system refuses something: another attempt changes nothing.
        except Exception as error:  # Ray raises this class itself.
            ray.shutdown()
            # Ray forgets the processes of a start that failed; they would run beside those of the next one.
            for left in set(psutil.Process().children()).difference(children):
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            if is_last:
                raise ClusterError(
                    f"Ray does not start on this machine: {first_line(error).rstrip('.')}. The machine may be too "
                    "busy, or short of memory: end other programs, and run the same command again. Ray's own words: "
                    f"{arguments.get('_temp_dir', os.environ.get('RAY_TMPDIR'))}/session_latest/logs."
                ) from error


def _set_token() -> None:
    """Hand Ray its token in the environment if it cannot write one into the home folder."""
    folder = Path(os.path.expanduser("~")) / ".ray"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_usable = os.access(folder, os.W_OK) or (folder / "auth_token").is_file()
    except OSError:
        is_usable = False
    if not is_usable and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _is_in_own_checkout() -> bool:
    return Path.cwd() == Path(__file__).parents[2]


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
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


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


def _logging_level() -> int:
    return logging.INFO if is_verbose() else logging.ERROR
