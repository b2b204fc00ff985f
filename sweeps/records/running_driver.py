"""The driver that runs a sweep at this moment, found from files, and asked to end.

On this machine the kernel says which process holds a lock, so a lock file that others have written names no process of
ours. Of a driver on another machine only the beats of its pulse are seen.
"""

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.schema.user_errors import InputFault
from sweeps.records.results_folder import LOCK_FILE
from sweeps.records.sweep_lock import SILENCE_S, Holder, holder_of

_LOCKS = Path("/proc/locks")
_LOOK_S = 0.5


@dataclass(frozen=True)
class Driver:
    """A process that runs a sweep."""

    holder: Holder
    is_here: bool
    """It runs on this machine."""

    def __str__(self) -> str:
        return str(self.holder)


def driver_of(folder: Path) -> Driver | None:
    """The live driver of a sweep's folder; None if no process runs the sweep."""
    path = folder / LOCK_FILE
    holder = holder_of(path)
    if holder is None:
        return None
    is_here = holder.host == socket.gethostname()
    is_alive = _holds(holder.pid, path) if is_here else _has_beaten(path)
    return Driver(holder, is_here) if is_alive else None


def ask_to_end(folder: Path, *, patience_s: float) -> bool:
    """Ask the driver of a sweep to end as Ctrl-C does; returns whether it has ended within `patience_s` seconds.

    Raises:
        InputFault: No process runs the sweep, or it runs on another machine or for another user.
    """
    driver = driver_of(folder)
    if driver is None:
        raise InputFault(f"{folder}: no process runs this sweep, so there is nothing to stop")
    if not driver.is_here:
        raise InputFault(f"{folder}: {driver} runs this sweep; run pretune stop on {driver.holder.host}")
    try:
        # Not SIGINT: a shell lets its background jobs ignore that.
        os.kill(driver.holder.pid, signal.SIGTERM)
    except PermissionError as error:
        raise InputFault(f"{folder}: {driver} belongs to another user; ask that user to stop it") from error
    give_up_at = time.monotonic() + patience_s
    while (now := driver_of(folder)) is not None and now.holder.is_same_process(driver.holder):
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(_LOOK_S)
    return True


def _holds(pid: int, path: Path) -> bool:
    """Whether a process of this machine holds the lock of a file."""
    with suppress(OSError):
        held = [line.split() for line in _LOCKS.read_text().splitlines()]
        inode = str(path.stat().st_ino)
        return any(
            words[1] == "FLOCK" and words[4] == str(pid) and words[5].rpartition(":")[2] == inode
            for words in held
            if len(words) > 5
        )
    return _has_beaten(path)  # No Linux.


def _has_beaten(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < SILENCE_S
    except OSError:
        return False
