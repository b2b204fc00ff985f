"""The temporary folder of a driver; one that a killed driver left behind is removed by the next driver."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "pretune-tune-"


@contextmanager
def temporary_state() -> Iterator[Path]:
    """A new folder in the temporary folder of the system that exists within the block, after those left are removed.

    Its owner holds a lock on it, which the system releases at any kind of death. A process number would name another
    process in a container that shares the folder.
    """
    _remove_left()
    path, lock = _locked_folder()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked_folder() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = _opened(path)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another driver may have removed it before it was locked.
        if path.exists():
            return path, lock
        os.close(lock)


def _remove_left() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # A link, a folder of another user, and one whose owner lives.
        with suppress(OSError):
            lock = _opened(path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(path)
            finally:
                os.close(lock)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
