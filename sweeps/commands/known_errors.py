"""Errors of the machine, the network and libraries as one sentence each: place, reason, remedy.

The layers below raise them where they happen, often minutes into a command. An error that is not known here is a bug.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from data_pipeline.files.machine_faults import machine_fault
from data_pipeline.schema.user_errors import InputFault, first_line

_OF_THE_SYSTEM = {
    errno.EACCES: ("permission denied", "Change its permissions, or name another one"),
    errno.EPERM: ("permission denied", "Change its permissions, or name another one"),
    errno.ENOENT: ("no such file or folder", "Check the name, and that it is mounted on this machine"),
    errno.ENOTDIR: ("a part of the path is a file where a folder must be", "Name another path"),
    errno.EISDIR: ("it is a folder, and a file is needed", "Name a file"),
    errno.EEXIST: ("it exists already", "Remove it, or name another one"),
    errno.ENOTEMPTY: ("the folder is not empty", "Empty it, or name another one"),
    errno.ENAMETOOLONG: ("the name is too long", "Name a shorter path"),
    errno.ELOOP: ("the links in the path lead in a circle", "Name another path"),
    errno.ENOMEM: ("the machine has no memory left", "End other programs"),
    errno.EAGAIN: ("the limit of processes is reached", "Raise it (ulimit -u)"),
    errno.EADDRINUSE: ("the address is in use", "Name another port"),
}
"""Reason and remedy by number, besides those of `machine_fault`."""
_NETWORK = "Check the network and that service"
_MEMORY = "Use a smaller model or fewer lanes (resources.lanes), or end other programs"
_RAY_LOST = "Ray lost a process or a node; see ray.log in the results folder"
_OF_LIBRARIES = {
    "yaml": {"YAMLError": "Correct that YAML"},
    "mlflow.exceptions": {"MlflowException": "Check the MLflow store"},
    "sqlalchemy.exc": {"SQLAlchemyError": "Check the database of MLflow"},
    "requests.exceptions": {"RequestException": _NETWORK},
    "urllib3.exceptions": {"HTTPError": _NETWORK},
    "botocore.exceptions": {"BotoCoreError": _NETWORK, "ClientError": _NETWORK},
    "aiohttp": {"ClientError": _NETWORK},
    "ray.exceptions": {
        "OutOfMemoryError": _MEMORY,
        **dict.fromkeys(("RaySystemError", "RayActorError", "RpcError", "WorkerCrashedError"), _RAY_LOST),
        **dict.fromkeys(("NodeDiedError", "LocalRayletDiedError", "ObjectLostError", "GetTimeoutError"), _RAY_LOST),
    },
}
"""Remedy by module and class. The classes are looked up in loaded modules: others have raised nothing."""
_AGAIN = "Then run the same command again."
_MOST_FAULTS = 5


def sentence_of(error: BaseException) -> str | None:
    """Place, reason and remedy of an error whose kind is known, or of the cause behind it; None: it is a bug."""
    for one in _causes(error):
        found = _sentence(one)
        if found is not None:
            return found
    fault = machine_fault(error)  # Some libraries tell it in words alone.
    return None if fault is None else f"{fault} {_AGAIN}"


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
        return f"There is not enough memory. {_MEMORY}. {_AGAIN}"
    if _is("pydantic_core", "ValidationError", error):
        return _settings_sentence(error)
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror | socket.herror):
        return f"A connection failed: {_place(error)}{error.strerror or first_line(error)}. {_NETWORK}. {_AGAIN}"
    fault = machine_fault(error)
    if fault is not None:
        return f"{fault} {_AGAIN}"
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        reason, remedy = _OF_THE_SYSTEM[error.errno]
        if error.strerror and error.strerror != os.strerror(error.errno):
            reason = error.strerror.rstrip(".")  # A library's own words say more.
        return f"{_place(error)}{reason}. {remedy}. {_AGAIN}"
    for module, remedies in _OF_LIBRARIES.items():
        for name, remedy in remedies.items():
            if _is(module, name, error):
                return f"{type(error).__name__}: {first_line(error).rstrip('.')}. {remedy}. {_AGAIN}"
    return f"{_place(error)}{error.strerror}. {_AGAIN}" if isinstance(error, OSError) and error.strerror else None


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
