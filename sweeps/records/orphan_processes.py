"""Ends the processes that a killed driver left running on its machine; all of them inherit a mark of the driver.

The lock of a sweep names its driver in a file that others may be able to write. It therefore holds no mark but a seal,
a hash of the mark and the sweep's folder: a seal copied from the lock of another sweep, or made up, fits no process.

Ray's own processes notice within three seconds that their driver is gone. Until then workers still train and write
checkpoints to the folders that the next driver uses.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

MARK = "PRETUNE_DRIVER"
"""Environment variable of all processes started by one driver."""

_LOOK_S = 0.1


def driver_mark() -> str:
    """A secret mark of this process: pid, time of its start and a random part."""
    return f"{os.getpid()}-{psutil.Process().create_time()}-{_random_part()}"


def seal(mark: str, folder: Path) -> str:
    """What the lock of a sweep's folder says of the driver with this mark."""
    return hashlib.sha256(f"{mark}\n{folder.resolve()}".encode()).hexdigest()[:32]


def end_leftovers(sealed: str, folder: Path, *, patience_s: float = 5.0) -> None:
    """Wait until all processes of a dead driver have ended; kill those left after `patience_s` seconds.

    Processes of other users, of other sweeps, and of a driver that still runs are left alone.

    Args:
        sealed: The seal in the lock of the sweep's folder.
    """
    give_up_at = time.monotonic() + patience_s
    while any(_leftovers(sealed, folder)) and time.monotonic() < give_up_at:
        time.sleep(_LOOK_S)
    while left := list(_leftovers(sealed, folder)):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(_LOOK_S)


def _leftovers(sealed: str, folder: Path) -> Iterator[psutil.Process]:
    """The user's other live processes whose mark has this seal, if their driver is gone."""
    for process in psutil.process_iter():
        # The environments of zombies and of other users' processes are not readable.
        with suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.uids().real != os.getuid():
                continue
            mark = process.environ().get(MARK)
            if mark is not None and seal(mark, folder) == sealed and not _is_alive(mark):
                yield process


def _is_alive(mark: str) -> bool:
    """Whether the driver with this mark still runs."""
    pid, created_at, *_ = mark.split("-")
    try:
        driver = psutil.Process(int(pid))
        return str(driver.create_time()) == created_at and driver.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


@cache
def _random_part() -> str:
    return secrets.token_hex(16)
