"""Faults of the machine are told apart from those of a trial, with place, need and free room, in any wrapping."""

import errno
import os
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy.exc
from mlflow.exceptions import MlflowException
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayTaskError
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.tune.error import TuneError
from safetensors import SafetensorError

from data_pipeline.files.disk_room import NoRoomError, check_room, free_bytes
from data_pipeline.files.machine_faults import machine_fault
from data_pipeline.schema.user_errors import InputFault

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/mnt/results/x")


def raised(act: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # Any: the kind is the question.
        act()
    return caught.value


def in_a_callback_of_tune() -> None:
    try:
        raise FULL
    except OSError:
        raise TuneError("Traceback ...\nOSError: [Errno 28] No space left on device")  # noqa: B904  # As Tune does.


def from_cause(above: Exception, cause: Exception) -> Exception:
    above.__cause__ = cause
    return above


@pytest.mark.parametrize(
    "code", ["ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "EROFS", "EIO", "ESTALE", "ENODEV", "ENETDOWN", "ENOTCONN"]
)
def test_errors_of_the_system_that_meet_every_trial_are_faults_of_the_machine(code: str) -> None:
    number = getattr(errno, code)
    fault = machine_fault(OSError(number, os.strerror(number), "/mnt/results/trial.json"))
    assert fault is not None
    assert str(fault).startswith("/mnt/results/trial.json: ")
    assert fault.remedy
    assert pickle.loads(pickle.dumps(fault)) == fault


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RayTaskError("f", "Traceback ...", FULL).as_instanceof_cause(), "the disk is full"),
        (WorkerGroupError("m", {0: RuntimeError("rank 1 of 2 failed"), 1: FULL}), "the disk is full"),
        (raised(in_a_callback_of_tune), "the disk is full"),
        (TuneError("Traceback ...\nOSError: [Errno 28] No space left on device"), "the disk is full"),
        (SafetensorError("Error while serializing: I/O error: File system loop (os error 30)"), "read-only"),
        (sqlite3.OperationalError("database is locked"), "the database is locked"),
        (sqlalchemy.exc.OperationalError("INSERT", {}, Exception("disk I/O error")), "the storage does not work"),
        (MlflowException("(sqlite3.OperationalError) database or disk is full"), "the disk is full"),
        (OutOfDiskError(), "Ray's disk for objects is full"),
        (ObjectStoreFullError(), "Ray's memory for objects is full"),
        (from_cause(RuntimeError("a layer above"), FULL), "the disk is full"),
    ],
)
def test_a_fault_is_found_in_the_wrapping_of_libraries(error: Exception, reason: str, tmp_path: Path) -> None:
    fault = machine_fault(error, near=tmp_path)
    assert fault is not None
    assert reason in fault.reason


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a text with [Errno 28] No space left on device"),
        InputFault("line 3: No space left on device"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("[enforce fail] Connection reset by peer"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError(errno.ENOTCONN, "Transport endpoint is not connected"),
        FileNotFoundError(errno.ENOENT, "No such file", "corpus.txt"),
        PermissionError(errno.EACCES, "Permission denied", "/x"),
        MemoryError(),
        MlflowException("no run with this id"),
    ],
)
def test_errors_of_a_trial_an_input_or_a_connection_are_none(error: Exception) -> None:
    assert machine_fault(error) is None


def test_an_error_that_was_raised_while_another_was_handled_is_another_one() -> None:
    def fail() -> None:
        try:
            raise FULL
        except OSError:
            raise KeyError("x")  # noqa: B904  # As a bug in a handler.

    assert machine_fault(raised(fail)) is None


def test_a_results_folder_that_has_vanished_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    gone = tmp_path / "mount" / "results"
    error = raised((gone / "trial.json").read_text)
    assert str(machine_fault(error, near=gone)) == f"{gone}: the folder is gone. Mount it again, or bring it back."
    assert machine_fault(error, near=tmp_path) is None


def test_a_lack_of_room_says_what_is_needed_and_free_in_any_process(tmp_path: Path) -> None:
    free = free_bytes(tmp_path / "not" / "made" / "yet")
    assert free is not None
    check_room(tmp_path, free // 2)
    error = raised(lambda: check_room(tmp_path, 1 << 60))
    assert isinstance(error, NoRoomError)
    for one in (error, pickle.loads(pickle.dumps(error))):
        fault = machine_fault(RayTaskError("f", "Traceback ...", one).as_instanceof_cause())
        assert fault is not None
        assert str(fault).startswith(f"{tmp_path}: the disk is full: 1073741824.00 GiB are needed, ")
        assert str(fault).endswith(" are free. Make room there.")
