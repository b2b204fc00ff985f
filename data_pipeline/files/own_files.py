"""Files and folders of ours at names that others can foresee, in folders that others can write to.

Somebody who may write to a results folder can put a link where pretune will write, and the link can point at any file
of the user. Everything written at such a name is opened, locked or made here, and never follows a link.
"""

import errno
import logging
import os
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from filelock import FileLock

from data_pipeline.schema.user_errors import InputFault


class PlantedFileError(InputFault):
    """A link, a pipe or a device has the name of a file of ours."""


def no_link(path: str | Path, flags: int) -> int:
    """An `opener` for `open`: the regular file of this name, or a new one.

    Raises:
        PlantedFileError: The name belongs to a link, a pipe, a device or a folder.
    """
    try:
        # Without O_NONBLOCK a pipe would wait for its other end.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _refusal(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refusal(path)
    return descriptor


def fresh(path: str | Path, flags: int) -> int:
    """An `opener` for `open`: a new file of this name; an earlier file or link is removed, its target stays."""
    alone = flags | os.O_CREAT | os.O_EXCL  # Together they never follow a link.
    try:
        return os.open(path, alone, 0o666)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, alone, 0o666)


def clear(path: Path) -> None:
    """Remove a file, a folder with its content, or a link, whose target stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fresh_folder(path: Path) -> Path:
    """A new, empty folder of this name, in place of anything that has the name."""
    clear(path)
    path.mkdir()
    return path


def make_folder(path: Path) -> None:
    """Make a folder with its parents, unless it exists; `~/pretune` is made for its user alone."""
    # Unlike Path.home(), this does not fail for a user without a home folder.
    private = Path(os.path.expanduser("~/pretune"))
    if private in (path.absolute(), *path.absolute().parents):
        private.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(parents=True, exist_ok=True)


def private_temp_folder(name: str, *, longest: int) -> Path:
    """A folder for temporary files that the user alone can open, the same at every call.

    It lies in $TMPDIR, or in /tmp where its path would be too long.

    Args:
        longest: Most bytes of its path.
    """
    for parent in (tempfile.gettempdir(), "/tmp"):
        path = Path(parent) / f"{name}-{os.getuid()}"
        if len(os.fsencode(path)) <= longest:
            break
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and found.st_mode & 0o077 == 0:
        return path
    # Somebody else was first.
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=path.parent))


def own_lock(path: Path) -> FileLock:
    """A lock between processes at this name.

    Raises:
        PlantedFileError: As `no_link`.
    """
    refuse_link(path)
    return FileLock(path)  # The library opens it without following a link, too.


def refuse_link(path: Path) -> None:
    """Check a file that a library is about to open itself.

    Raises:
        PlantedFileError: The name exists and is no regular file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise _refusal(path)


class OwnLog(logging.FileHandler):
    """A log file that is opened with `no_link`."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=no_link)  # type: ignore[return-value]

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)  # The library opens the file outside of its own handling of errors.
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # The name of the library.
        """Lose a line that the disk does not take: its traceback on the terminal would say no more."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _refusal(path: str | Path) -> PlantedFileError:
    kind = f"a link to {os.readlink(path)}" if os.path.islink(path) else "not a regular file"
    return PlantedFileError(
        f"{path} is {kind}, and pretune writes a file of its own there. Find out who made it, remove it and run the "
        "same command again, or name another results folder."
    )
