"""Errors of the machine, the network and libraries as one sentence each: place, reason, remedy.

The layers below raise them where they happen, often minutes into a command. An error that is not known here is a bug.
"""

import errno
import os
import select
import socket
import sys
from collections.abc import Iterator
from typing import Any

from data_pipeline.schema.user_errors import InputFault, first_line

_OF_THE_SYSTEM = {
    errno.ENOSPC: ("the disk is full", "Make room there, and run the same command again"),
    errno.EDQUOT: ("your quota of disk space is used up", "Remove files of yours there, and run the same command again"),
    errno.EMFILE: ("this process has too many files open", "Raise the limit (ulimit -n 4096), and run the same command again"),
    errno.ENFILE: ("the machine has too many files open", "End other programs, and run the same command again"),
    errno.EROFS: ("the file system is read-only", "Name another folder, or mount it for writing"),
    errno.EACCES: ("permission denied", "Change its permissions, or name another one"),
    errno.EPERM: ("permission denied", "Change its permissions, or name another one"),
    errno.ENOENT: ("no such file or folder", "Check the name and that it is mounted on this machine"),
    errno.ENOTDIR: ("a part of the path is a file where a folder must be", "Name another path"),
    errno.EISDIR: ("it is a folder, and a file is needed", "Name a file"),
    errno.EEXIST: ("it exists already", "Remove it, or name another one"),
    errno.ENOTEMPTY: ("the folder is not empty", "Empty it, or name another one"),
    errno.ENAMETOOLONG: ("the name is too long", "Name a shorter path"),
    errno.ELOOP: ("the links in the path lead in a circle", "Name another path"),
    errno.EXDEV: ("it lies on another file system", "Name a folder on the same one"),
    errno.EIO: ("the storage does not work", "Check the disk or the network storage, and run the same command again"),
    errno.ESTALE: ("the network storage was lost", "Mount it again, and run the same command again"),
    errno.ENODEV: ("the storage was lost", "Mount it again, and run the same command again"),
    errno.ENOMEM: ("the machine has no memory left", "End other programs, and run the same command again"),
    errno.EAGAIN: ("the limit of processes is reached", "Raise it (ulimit -u), and run the same command again"),
    errno.EADDRINUSE: ("the address is in use", "Name another port"),
}  # fmt: skip
_AGAIN = "Check the network and that service, and run the same command again."
_RAY_LOST = "Ray lost a process or a node. Run the same command again; if it happens again, see ray.log in the results folder."  # fmt: skip
_MEMORY = "there is not enough memory. Use a smaller model or fewer lanes (resources.lanes), or end other programs."
_OF_LIBRARIES = {
    # Module, class: the sentence about it, after the error's own first line.
    ("yaml", "YAMLError"): "Correct that YAML.",
    ("mlflow.exceptions", "MlflowException"): "Check the MLflow store, and run the same command again.",
    ("sqlalchemy.exc", "SQLAlchemyError"): "Check the database of MLflow, and run the same command again.",
    ("requests.exceptions", "RequestException"): _AGAIN,
    ("urllib3.exceptions", "HTTPError"): _AGAIN,
    ("botocore.exceptions", "BotoCoreError"): _AGAIN,
    ("botocore.exceptions", "ClientError"): _AGAIN,
    ("aiohttp", "ClientError"): _AGAIN,
    (
        "ray.exceptions",
        "OutOfDiskError",
    ): "Make room in the folder of Ray (RAY_TMPDIR), and run the same command again.",
    ("ray.exceptions", "ObjectStoreFullError"): "Make room in /dev/shm, and run the same command again.",
    ("ray.exceptions", "OutOfMemoryError"): f"On a node of Ray {_MEMORY}",
    **{
        ("ray.exceptions", name): _RAY_LOST
        for name in (
            *("RaySystemError", "RayActorError", "RpcError", "WorkerCrashedError", "NodeDiedError"),
            *("LocalRayletDiedError", "ObjectLostError", "GetTimeoutError", "RuntimeEnvSetupError"),
        )
    },
}
"""The classes are looked up among the loaded modules: a library that is not loaded has raised nothing."""
_MOST_FAULTS = 5


def sentence_of(error: BaseException) -> str | None:
    """Place, reason and remedy of an error whose kind is known, or of the cause behind it; None: it is a bug."""
    for one in _causes(error):
        found = _sentence(one)
        if found is not None:
            return found
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and the errors that it names as its causes. Ray's copy of a worker's error holds the error itself."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        inner = getattr(error, "cause", None)
        if isinstance(inner, BaseException):
            error = inner
            continue
        yield error
        origin = getattr(error, "orig", None)  # The driver's error below one of SQLAlchemy.
        error = error.__cause__ or (origin if isinstance(origin, BaseException) else None)


def _sentence(error: BaseException) -> str | None:
    if isinstance(error, InputFault):
        return str(error)
    if isinstance(error, MemoryError):
        return f"{_MEMORY[0].upper()}{_MEMORY[1:]}"
    if _is("pydantic_core", "ValidationError", error):
        return _settings_sentence(error)
    if isinstance(error, BrokenPipeError) and stdout_is_closed():
        return "The program that reads the output has ended; the rest of the output is lost."
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror | socket.herror):
        return f"A connection failed: {_place(error)}{error.strerror or first_line(error)}. {_AGAIN}"
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        reason, remedy = _OF_THE_SYSTEM[error.errno]
        if error.strerror and error.strerror != os.strerror(error.errno):
            reason = error.strerror  # A library's own words say more.
        return f"{_place(error)}{reason}. {remedy}."
    for (module, name), remedy in _OF_LIBRARIES.items():
        if _is(module, name, error):
            return f"{type(error).__name__}: {first_line(error)}. {remedy}"
    if isinstance(error, OSError) and error.strerror:
        return f"{_place(error)}{error.strerror}. Run the same command again once that is mended."
    return None


def _is(module: str, name: str, error: BaseException) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)


def _place(error: OSError) -> str:
    # Only the current folder is used without a name.
    is_here = error.errno == errno.ENOENT and error.filename is None and not _current_folder_exists()
    if is_here:
        return "the current folder: "
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' to '.join(names)}: " if names else ""


def _current_folder_exists() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _settings_sentence(error: Any) -> str:
    """Each setting of a pydantic error with its value and rule."""
    faults = [
        f"{'.'.join(map(str, fault['loc'])) or error.title} = {fault['input']!r:.80}: {fault['msg']}"
        for fault in error.errors(include_url=False)
    ]
    more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
    return f"{error.title} is not valid: {'; '.join(faults[:_MOST_FAULTS])}{more}. Correct these settings."


def stdout_is_closed() -> bool:
    """Whether no process reads standard output any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # No file, as in a test: or closed.
        return False
