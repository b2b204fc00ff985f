"""The lock of a sweep: one process runs it at a time, on this host or another; dead holders are detected.

The kernel releases its lock when the process ends in any way, which is enough on one machine. A shared file system may
limit that lock to one host, or not support it. The holder therefore also writes a pulse into the file, and a process
that finds another host's name in it watches the pulse. No clocks of two hosts are compared.
"""

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_pipeline.files.disk_room import room_named
from data_pipeline.files.own_files import PlantedFileError, no_link
from data_pipeline.files.plain_json import parse_object
from data_pipeline.schema.terminal_text import echo, visible
from data_pipeline.schema.user_errors import InputFault
from sweeps.records.orphan_processes import driver_mark, end_leftovers, seal

BEAT_S = 5.0
"""Seconds between two beats of the pulse."""
SILENCE_S = 30.0
"""Seconds without a beat after which a holder on another host counts as dead."""

_RECORD_BYTES = 512
"""Fixed length of the record: one write call replaces it whole, so a reader never sees half of it."""
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class SweepRunsAlreadyError(InputFault):
    """Another process runs the same sweep."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a sweep."""

    pid: int
    host: str
    mark: str
    """From `seal`: distinguishes processes with the same pid."""
    beat: int = 0

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"

    def is_same_process(self, other: "Holder | None") -> bool:
        """Whether both are the same process, at any beat."""
        return other is not None and (self.host, self.mark) == (other.host, other.mark)


@contextmanager
def hold(
    path: Path, *, say: Callable[[str], None], beat_s: float = BEAT_S, silence_s: float = SILENCE_S
) -> Iterator[None]:
    """Hold the lock file of a sweep during the block.

    Args:
        say: Called with a line when this process waits for one on another host, or declares it dead.

    Raises:
        SweepRunsAlreadyError: A live process holds the lock; the message names it.
        PlantedFileError: The lock is a link, a pipe or a device.
    """
    me = Holder(os.getpid(), socket.gethostname(), seal(driver_mark(), path.parent))
    with os.fdopen(no_link(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0) as file:
        is_told_by_kernel = _lock(file.fileno(), path)
        before = holder_of(path)
        if before is not None and not (is_told_by_kernel and before.host == me.host):
            see_that_it_is_dead(before, lambda: holder_of(path), say=say, silence_s=silence_s)
        if before is not None and before.host == me.host and before.mark != me.mark:
            end_leftovers(before.mark, path.parent)
        with room_named(path, _RECORD_BYTES):
            _write(file.fileno(), me)
        ends = threading.Event()
        pulse = threading.Thread(target=_beat, args=(file.fileno(), path, me, ends, beat_s), name="pulse", daemon=True)
        pulse.start()
        try:
            yield
        finally:
            ends.set()
            pulse.join()
            with suppress(OSError):  # On a disk that has failed; the kernel's lock ends with this process.
                os.ftruncate(file.fileno(), 0)


def _lock(descriptor: int, path: Path) -> bool:
    """Take the kernel's lock; returns whether the file system supports it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            return False
        raise _refusal(holder_of(path)) from error
    return True


def see_that_it_is_dead(
    holder: Holder, look: Callable[[], Holder | None], *, say: Callable[[str], None], silence_s: float = SILENCE_S
) -> None:
    """Watch the pulse of a holder until it is known to be dead.

    Args:
        look: Returns the current holder; None after it released the lock.

    Raises:
        SweepRunsAlreadyError: The holder is alive.
    """
    say(f"{holder} was the last to run this sweep; waiting up to {silence_s:.0f} s for a sign of life")
    give_up_at = time.monotonic() + silence_s
    while time.monotonic() < give_up_at:
        time.sleep(min(1.0, silence_s / 10))
        now = look()
        if now is None:
            return
        if now != holder:
            raise _refusal(now)
    say(f"{holder} gives no sign of life; this process resumes the sweep")


def _beat(descriptor: int, path: Path, me: Holder, ends: threading.Event, beat_s: float) -> None:
    beat = 0
    while not ends.wait(beat_s):
        holder = holder_of(path)
        if holder is not None and not me.is_same_process(holder):
            # This process was suspended so long that another one declared it dead and took over. Further writes would
            # disturb that one, so this process kills itself, which loses no finished work.
            echo(f"pretune: {visible(str(holder))} has taken over this sweep; this process ends", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGKILL)
        beat += 1
        with suppress(OSError):  # The sweep itself reports a disk that fails.
            _write(descriptor, replace(me, beat=beat))


def holder_in(content: bytes | None) -> Holder | None:
    """The holder of a sweep, from the content of its lock file; None if the lock is free."""
    try:
        holder = Holder(**parse_object(content or b""))
    except (ValueError, TypeError):
        return None
    kinds = {"pid": int, "host": str, "mark": str, "beat": int}
    return holder if all(type(getattr(holder, name)) is kind for name, kind in kinds.items()) else None


def holder_of(path: Path) -> Holder | None:
    """The process that a lock file names, alive or dead; None if the lock is free, missing or no file of ours."""
    # Open anew each time: only then a network file system asks its server for the current content.
    try:
        with open(path, "rb", opener=no_link) as file:
            return holder_in(file.read(2 * _RECORD_BYTES))
    except (OSError, PlantedFileError):
        return None


def _write(descriptor: int, holder: Holder) -> None:
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode().ljust(_RECORD_BYTES), 0)


def _refusal(holder: Holder | None) -> SweepRunsAlreadyError:
    return SweepRunsAlreadyError(
        f"this sweep is running already ({holder or 'another process'}). Wait for it, or end it with Ctrl-C; the same "
        "command then resumes it."
    )
