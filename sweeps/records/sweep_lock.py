"""Who carries a sweep out: one process at a time, on this host or another, told apart from one that is dead.

The kernel's lock goes with its process, however that ends, and needs no more on one machine. File systems that several
hosts share may keep it to one host, or not know it: so the holder also writes a pulse into the file, and whoever finds
another host's name in it looks whether the pulse still beats. No clocks of two hosts are compared.
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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_pipeline.schema.user_errors import InputFault
from sweeps.records.orphan_processes import driver_mark, end_leftovers

BEAT_S = 5.0
"""Seconds from beat to beat."""
SILENCE_S = 30.0
"""A holder on another host whose pulse has stood still for so long is dead."""

_RECORD_BYTES = 512
"""The record is written whole, in one call and always as long as this: a reader never sees half of it."""
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class SweepRunsAlreadyError(InputFault):
    """Another process carries the same sweep out."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a sweep."""

    pid: int
    host: str
    mark: str
    """From `driver_mark`: tells apart two processes of one number."""
    beat: int = 0

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"

    def is_same_process(self, other: "Holder | None") -> bool:
        """Whether both are one process, at whatever beat."""
        return other is not None and (self.host, self.mark) == (other.host, other.mark)


@contextmanager
def hold(
    path: Path, *, say: Callable[[str], None], beat_s: float = BEAT_S, silence_s: float = SILENCE_S
) -> Iterator[None]:
    """Hold the sweep whose lock file this is.

    Args:
        say: Told in a line that another host's process is waited for, or is taken to be dead.

    Raises:
        SweepRunsAlreadyError: Another process holds it, and lives; names it.
    """
    me = Holder(os.getpid(), socket.gethostname(), driver_mark())
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
        is_told_by_kernel = _lock(file.fileno(), path)
        before = _read(path)
        if before is not None and not (is_told_by_kernel and before.host == me.host):
            see_that_it_is_dead(before, lambda: _read(path), say=say, silence_s=silence_s)
        if before is not None and before.host == me.host and before.mark != me.mark:
            end_leftovers(before.mark)
        _write(file.fileno(), me)
        ends = threading.Event()
        pulse = threading.Thread(target=_beat, args=(file.fileno(), path, me, ends, beat_s), name="pulse", daemon=True)
        pulse.start()
        try:
            yield
        finally:
            ends.set()
            pulse.join()
            os.ftruncate(file.fileno(), 0)


def _lock(descriptor: int, path: Path) -> bool:
    """Take the kernel's lock; whether there is such a thing here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            return False
        raise _refusal(_read(path)) from error
    return True


def see_that_it_is_dead(
    holder: Holder, look: Callable[[], Holder | None], *, say: Callable[[str], None], silence_s: float = SILENCE_S
) -> None:
    """Watch a holder's pulse for a while.

    Args:
        look: The holder as it stands now; None once it has let go.

    Raises:
        SweepRunsAlreadyError: It lives.
    """
    say(f"{holder} held this sweep last; waiting up to {silence_s:.0f} s to see whether it still does")
    give_up_at = time.monotonic() + silence_s
    while time.monotonic() < give_up_at:
        time.sleep(min(1.0, silence_s / 10))
        now = look()
        if now is None:
            return
        if now != holder:
            raise _refusal(now)
    say(f"{holder} gives no sign of life; this process resumes its sweep")


def _beat(descriptor: int, path: Path, me: Holder, ends: threading.Event, beat_s: float) -> None:
    beat = 0
    while not ends.wait(beat_s):
        holder = _read(path)
        if holder is not None and not me.is_same_process(holder):
            # This process stood still for so long that another one took it to be dead. Whatever it wrote from now on
            # would disturb that one, so it ends as if it had been killed, which costs no finished work.
            print(f"pretune: {holder} has taken over this sweep; this process ends", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        beat += 1
        _write(descriptor, replace(me, beat=beat))


def holder_in(content: bytes | None) -> Holder | None:
    """Who holds a sweep, by the content of its lock file; None: nobody."""
    try:
        return Holder(**json.loads(content or b""))
    except (ValueError, TypeError):
        return None


def _read(path: Path) -> Holder | None:
    # Opened anew each time: that is when a network file system asks its server for what is new.
    try:
        return holder_in(path.read_bytes())
    except OSError:
        return None


def _write(descriptor: int, holder: Holder) -> None:
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode().ljust(_RECORD_BYTES), 0)


def _refusal(holder: Holder | None) -> SweepRunsAlreadyError:
    return SweepRunsAlreadyError(
        f"this sweep is running already ({holder or 'another process'}). Wait for it, or end it with Ctrl-C; giving "
        "the same command then resumes where it stopped."
    )
