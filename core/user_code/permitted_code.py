"""Import of a user's class. Only code that was permitted in this process is imported; settings alone permit nothing.

A permitted class is found by its digest. Its modules come from the text that was permitted, not from a search path: no
other file of its folder is imported, and none of ours, of Python's or of an installed package is hidden.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from core.user_code.class_source import ClassCode
from core.user_code.code_places import UserCodeError, told_with_place
from data_pipeline.schema.user_errors import InputFault

OUTPUT = logging.getLogger("pretune.user_code")
"""Takes the lines that code of the user prints."""
_PERMITTED: dict[str, tuple[ClassCode, type[Any]]] = {}
"""By digest and name of the class."""


class CodeNotPermittedError(InputFault):
    """Settings name a class, and its code was not permitted in this process."""


def permit(code: ClassCode) -> None:
    """Let this process build the class of this code. Its module is imported now.

    Now, because a module that is imported while a model is built for a prediction would hold tensors without values.

    Raises:
        UserCodeError: The module raises an error while it is imported, or has no such class.
    """
    key = _key(code.class_path, code.digest)
    if key not in _PERMITTED:
        _PERMITTED[key] = code, _imported(code)


def permitted_class(class_path: str, digest: str | None) -> tuple[ClassCode, type[Any]]:
    """A permitted class, with its code.

    Raises:
        CodeNotPermittedError: It was not permitted here.
    """
    found = _PERMITTED.get(_key(class_path, digest))
    if found is None:
        raise CodeNotPermittedError(not_permitted(class_path))
    return found


def not_permitted(class_path: str) -> str:
    """Message about a class whose code may not run."""
    return (
        f"model.class={class_path}: its code runs only where you permit it. Read it. Then give --allow-code, or write "
        "trust_code: true into your own sweep file."
    )


def _imported(code: ClassCode) -> type[Any]:
    if not code.is_installed:
        _offer(code)
    with told_with_place(f"the import of {code.module}", files_of(code)):
        module = importlib.import_module(code.module)
    found = getattr(module, code.class_name, None)
    if not isinstance(found, type):
        raise UserCodeError(f"{files_of(code)[0]}: {code.class_name} is no class; name a class")
    return found


def files_of(code: ClassCode) -> list[str]:
    """Paths of its files, as in tracebacks."""
    return [os.path.join(code.folder, *name.split("/")) for name, _ in code.files]


def _key(class_path: str, digest: str | None) -> str:
    return f"{digest} {class_path}"


class _PermittedModules(importlib.abc.MetaPathFinder):
    """Finds the modules of permitted code, by their exact names alone."""

    def __init__(self) -> None:
        self.code_of: dict[str, tuple[ClassCode, str]] = {}
        """(code, path below its folder) by name of the module."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.code_of:
            return None
        code, name = self.code_of[fullname]
        loader = _FromText(code, name)
        return importlib.util.spec_from_loader(fullname, loader, is_package=name.endswith("__init__.py"))


class _FromText(importlib.abc.ExecutionLoader):
    def __init__(self, code: ClassCode, name: str) -> None:
        self._text = dict(code.files)[name]
        self._file = os.path.join(code.folder, *name.split("/"))

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002
        return self._file

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        return self._text

    def is_package(self, fullname: str) -> bool:  # noqa: ARG002
        return self._file.endswith("__init__.py")

    def exec_module(self, module: ModuleType) -> None:
        # A name of the module comes before the builtin one. So prints go to a log, and sys.stdout stays as it is.
        vars(module)["print"] = _print_to_log
        super().exec_module(module)


_FINDER = _PermittedModules()


def _offer(code: ClassCode) -> None:
    """Let imports find the modules of this code, in place of an earlier version of them."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    by_module = {_module_name(code, name): (code, name) for name, _ in code.files}
    if _FINDER.code_of.get(code.module, (None, ""))[0] == code:
        return
    top = code.module.split(".")[0]
    for name in [one for one in _FINDER.code_of if one == top or one.startswith(f"{top}.")]:
        del _FINDER.code_of[name]
        sys.modules.pop(name, None)
    _FINDER.code_of |= by_module


def _module_name(code: ClassCode, file: str) -> str:
    if len(code.files) == 1 and "/" not in file:
        return code.module
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _print_to_log(
    *values: Any, sep: str | None = " ", end: str | None = "\n", file: Any = None, flush: bool = False
) -> None:
    if file is not None and file not in (sys.stdout, sys.stderr):
        print(*values, sep=sep, end=end, file=file, flush=flush)
        return
    OUTPUT.info("%s", (" " if sep is None else sep).join(map(str, values)))
