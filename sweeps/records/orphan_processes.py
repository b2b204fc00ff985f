"""What a killed driver leaves running on its machine: known by a mark that all of its processes inherit, and ended.

Ray's own processes notice within three seconds that their driver is gone. Until then workers still train and write
checkpoints, where the next driver's are about to.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "PRETUNE_DRIVER"
"""Variable in the environment of all processes that come of one driver."""

_PROCESSES = Path("/proc")
_START_TIME_FIELD = 21
_LOOK_S = 0.1


def driver_mark() -> str:
    """This process, told apart from all others that had or will have its number on this machine."""
    try:
        # The name, in parentheses, may hold spaces; what follows it does not.
        fields = (_PROCESSES / "self" / "stat").read_text().rpartition(")")[2].split()
        started = fields[_START_TIME_FIELD - 2]
    except OSError:
        started = "0"  # No Linux.
    return f"{os.getpid()}-{started}"


def end_leftovers(mark: str, *, patience_s: float = 5.0) -> None:
    """Wait until no process of a driver that is dead is left; those that stay longer are killed."""
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
    """Processes alive that carry a mark, besides this one."""
    wanted = f"{MARK}={mark}".encode()
    for folder in _PROCESSES.glob("[0-9]*"):
        try:
            # Of a zombie, which is dead, and of another user's process nothing can be read.
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and folder.name != str(os.getpid()):
            yield int(folder.name)
