"""Faults of the machine that would meet every trial: no room, no storage, too many open files. No setting is to blame.

An error of one trial ends that trial. These end a whole sweep: other settings would meet them, too.
"""

import errno
import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.files.disk_room import NoRoomError, free_bytes
from data_pipeline.schema.settings import format_bytes
from data_pipeline.schema.wrapped_errors import wrapped_errors

_ROOM = "Make room there"
_MOUNT = "Mount it again"
_WORDS = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("your quota of disk space is used up", "Remove files of yours there"),
    errno.EMFILE: ("this process has too many files open", "Raise the limit (ulimit -n 4096)"),
    errno.ENFILE: ("the machine has too many files open", "End other programs"),
    errno.EROFS: ("the file system is read-only", "Mount it for writing, or name another folder"),
    errno.EIO: ("the storage does not work", "Check the disk or the network storage"),
    errno.ESTALE: ("the network storage was lost", _MOUNT),
    errno.ENODEV: ("the storage was lost", _MOUNT),
    errno.EHOSTDOWN: ("the network storage was lost", _MOUNT),
    errno.ENETDOWN: ("the network is down", "Check the network"),
}
"""Reason and remedy by number."""
_WITH_A_PLACE = {errno.ENOTCONN: ("the network storage was lost", _MOUNT)}
"""Numbers that concern storage only where the error names a file; without one it is about a connection."""
_TEXTS = {
    "No space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Too many open files in system": errno.ENFILE,
    "Too many open files": errno.EMFILE,
    "Read-only file system": errno.EROFS,
    "attempt to write a readonly database": errno.EROFS,
    "disk I/O error": errno.EIO,
    "Input/output error": errno.EIO,
    "Stale file handle": errno.ESTALE,
    "Transport endpoint is not connected": errno.ENOTCONN,
}
_NUMBERED = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)|\[errno (\d+)\]")
_DATABASE = {
    "database is locked": ("the database is locked", "End the program that holds it"),
    "database table is locked": ("the database is locked", "End the program that holds it"),
    "unable to open database file": ("the database was lost", _MOUNT),
    "no such table": ("the database was lost", "Bring its file back"),
}
_OBJECT_STORE = {
    "OutOfDiskError": ("Ray's disk for objects is full", "Make room in the folder of Ray (RAY_TMPDIR)"),
    "ObjectStoreFullError": ("Ray's memory for objects is full", "Make room in /dev/shm"),
}
_AS_GOOD_AS_FULL_BYTES = 16 << 20
_SPEAKING = ("SafetensorError", "TuneError")
"""Classes whose text names a cause that they hide."""


@dataclass(frozen=True)
class MachineFault:
    """A fault of the machine. Plain values, so it crosses processes."""

    place: str
    """File or folder; empty if unknown."""
    reason: str
    """With the room that is needed and free, where the fault is about room."""
    remedy: str
    is_about_room: bool = False
    host: str = ""
    """Name of the machine where it is not that of the reader."""

    def __str__(self) -> str:
        """One sentence of place and reason, and one of the remedy."""
        where = f"{self.place} on {self.host}" if self.host else self.place
        return f"{where}: {self.reason}. {self.remedy}." if where else f"{self.reason}. {self.remedy}."


def machine_fault(error: BaseException, *, near: Path | None = None) -> MachineFault | None:
    """The fault of the machine behind an error; None if the cause is another one.

    Args:
        near: Folder that the work writes to: the place of a fault that names none.
    """
    for one in _all_of(error):
        found = _fault_of(one, near)
        if found is not None:
            return found
    return None


def _all_of(error: BaseException) -> Iterator[BaseException]:
    """The error and all errors inside it, innermost first: they know the place."""
    order: list[BaseException] = []
    pending = [error]
    while pending:
        one = pending.pop()
        if any(one is other for other in order):
            continue
        order.append(one)
        pending += [inner for _, inner in wrapped_errors(one)]
    return reversed(order)


def _fault_of(error: BaseException, near: Path | None) -> MachineFault | None:
    if isinstance(error, NoRoomError):
        words = (error.strerror or "the disk is full", _WORDS[error.errno or errno.ENOSPC][1])
        return MachineFault(str(error.filename), *words, is_about_room=True)
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error.errno, error, near)
    names = {cls.__name__ for cls in type(error).__mro__}
    for name, (reason, remedy) in _OBJECT_STORE.items():
        if name in names:
            return MachineFault("", reason, remedy)
    package = (type(error).__module__ or "").split(".")[0]
    if package in ("sqlite3", "sqlalchemy", "mlflow"):
        for text, (reason, remedy) in _DATABASE.items():
            if text in str(error):
                return MachineFault("" if near is None else str(near), reason, remedy)
    elif not (names & set(_SPEAKING) or package in ("ray", "pyarrow") or type(error) in (OSError, RuntimeError)):
        return None  # A text of another class may quote anything.
    number = _number_in(str(error))
    return None if number is None else _of_the_system(number, error, near)


def _number_in(text: str) -> int | None:
    """The last number of a system error in a text; in a traceback that line names the error."""
    numbers = [int(next(filter(None, found))) for found in _NUMBERED.findall(text)]
    if numbers:
        return numbers[-1]
    return next((number for words, number in _TEXTS.items() if words in text), None)


def _of_the_system(number: int, error: BaseException, near: Path | None) -> MachineFault | None:
    given = getattr(error, "filename", None)
    place = os.fsdecode(given) if isinstance(given, str | bytes) else "" if near is None else str(near)
    if number in (errno.ENOENT, errno.ENOTDIR) and near is not None and not near.exists():
        return MachineFault(str(near), "the folder is gone", "Mount it again, or bring it back")
    words = _WORDS.get(number) or (_WITH_A_PLACE.get(number) if given or near else None)
    if words is None:
        return None
    reason, remedy = words
    if number == errno.EMFILE:
        reason += f", and {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} are allowed"
    if number == errno.ENOSPC and place:
        reason, remedy = _room_in_words(Path(place), reason, remedy)
    return MachineFault(place, reason, remedy, is_about_room=number in (errno.ENOSPC, errno.EDQUOT))


def _room_in_words(place: Path, reason: str, remedy: str) -> tuple[str, str]:
    free = free_bytes(place)
    if free is not None and free < _AS_GOOD_AS_FULL_BYTES:
        return f"{reason}: {format_bytes(free)} are free", remedy
    try:
        found = os.statvfs(place if place.exists() else place.parent)
    except OSError:
        return reason, remedy
    if found.f_files and not found.f_favail:
        return "the file system takes no more files (no free inodes)", "Remove files there"
    return reason, remedy
