"""What a killed driver leaves running on its machine: known by a mark that all of its processes inherit, and ended.

Ray's own processes notice within three seconds that their driver is gone. Until then workers still train and write
checkpoints, where the next driver's are about to.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil

MARK = "PRETUNE_DRIVER"
"""Variable in the environment of all processes that come of one driver."""

_LOOK_S = 0.1


def driver_mark() -> str:
    """A name for this process that no other process of this machine had or will have."""
    return f"{os.getpid()}-{psutil.Process().create_time()}"


def end_leftovers(mark: str, *, patience_s: float = 5.0) -> None:
    """Wait until no process of a dead driver is left. Kill those that stay longer.

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
    """Live processes that carry a mark, besides this one."""
    for process in psutil.process_iter():
        # The environment of a zombie and of another user's process cannot be read.
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                yield process
