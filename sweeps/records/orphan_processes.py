"""Ends the processes that a killed driver left running on its machine; all of them inherit a mark of the driver.

Ray's own processes notice within three seconds that their driver is gone. Until then workers still train and write
checkpoints to the folders that the next driver uses.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil

MARK = "PRETUNE_DRIVER"
"""Environment variable of all processes started by one driver."""

_LOOK_S = 0.1


def driver_mark() -> str:
    """A mark of this process that differs from those of all others with the same pid on this machine."""
    return f"{os.getpid()}-{psutil.Process().create_time()}"


def end_leftovers(mark: str, *, patience_s: float = 5.0) -> None:
    """Wait until all processes of a dead driver have ended; kill those left after `patience_s` seconds.

    Args:
        mark: From `driver_mark` of the dead driver.
    """
    give_up_at = time.monotonic() + patience_s
    while any(_marked(mark)) and time.monotonic() < give_up_at:
        time.sleep(_LOOK_S)
    while left := list(_marked(mark)):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(_LOOK_S)


def _marked(mark: str) -> Iterator[psutil.Process]:
    """The other live processes that carry a mark."""
    for process in psutil.process_iter():
        # The environments of zombies and of other users' processes are not readable.
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                yield process
