"""Room on a disk: checked before a large write, and named with place, need and free room where a write fails."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.schema.settings import format_bytes

RESERVE_BYTES = 1 << 20
"""Room that large writes leave free, so that records and reports of what was done so far can still be written."""
_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoomError(OSError):
    """A file system has too little room. Its words are place, need and free room."""

    def __init__(self, place: str, needed_bytes: int, free_bytes: int | None, number: int = errno.ENOSPC) -> None:
        """
        Args:
            number: ENOSPC or EDQUOT.
        """
        reason = "the disk is full" if number == errno.ENOSPC else "your quota of disk space is used up"
        free = "" if free_bytes is None or number == errno.EDQUOT else f", {format_bytes(free_bytes)} are free"
        super().__init__(number, f"{reason}: {format_bytes(needed_bytes)} are needed{free}", place)
        self.needed_bytes, self.free_bytes = needed_bytes, free_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes with its figures."""
        return type(self), (self.filename, self.needed_bytes, self.free_bytes, self.errno)


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user can still write into a folder, or into the one that it will be made in; None if unknown."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            found = os.statvfs(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
        # Some network storage reports no size at all.
        return found.f_bavail * found.f_frsize if found.f_blocks else None
    return None


def check_room(folder: Path, needed_bytes: int) -> None:
    """Check that a folder has room for so many bytes.

    Raises:
        NoRoomError: It has not.
    """
    free = free_bytes(folder)
    if free is not None and free < needed_bytes:
        raise NoRoomError(str(folder), needed_bytes, free)


@contextmanager
def room_named(place: Path | str, needed_bytes: int) -> Iterator[None]:
    """Give an error of the system in the block its place, and one about room its figures.

    Raises:
        NoRoomError: There is no room for the write in the block.
    """
    try:
        yield
    except NoRoomError:
        raise
    except OSError as error:
        if error.errno in _IS_FULL:
            free = free_bytes(Path(place).parent)
            raise NoRoomError(os.fspath(place), needed_bytes, free, error.errno or 0) from error
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(place)  # Writing to an open file names none.
        raise
