"""Ends the processes that a killed driver left running on its machine; all of them inherit a mark of the driver.

Ray's own processes notice within three seconds that their driver is gone. Until then workers still train and write
checkpoints to the folders that the next driver uses.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "PRETUNE_DRIVER"
"""Environment variable of all processes started by one driver."""

_PROCESSES = Path("/proc")
_START_TIME_FIELD = 21
_LOOK_S = 0.1


def driver_mark() -> str:
    """A mark of this process that differs from those of all others with the same pid on this machine."""
    try:
        # The process name, in parentheses, may contain spaces; the fields after it do not.
        fields = (_PROCESSES / "self" / "stat").read_text().rpartition(")")[2].split()
        started = fields[_START_TIME_FIELD - 2]
    except OSError:
        started = "0"  # Not Linux.
    return f"{os.getpid()}-{started}"


def end_leftovers(mark: str, *, patience_s: float = 5.0) -> None:
    """Wait until all processes of a dead driver have ended; kill those left after `patience_s` seconds."""
    give_up_at = time.monotonic() + patience_s
    while any(_marked(mark)) and time.monotonic() < give_up_at:
        time.sleep(_LOOK_S)
    while left := list(_marked(mark)):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(_LOOK_S)


def _marked(mark: str) -> Iterator[int]:
    """Pids of the other live processes that carry a mark."""
    wanted = f"{MARK}={mark}".encode()
    for folder in _PROCESSES.glob("[0-9]*"):
        try:
            # Zombies and processes of other users are not readable.
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and folder.name != str(os.getpid()):
            yield int(folder.name)
