"""The source of a class that settings name: `package.module:Class`, or `file.py:Class`. Nothing of it is run.

Its text travels to every process that builds the class, so workers need neither the folder nor a search path, and the
digest of the text is a part of the settings: a changed class is another model.
"""

import ast
import difflib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import decode_source
from pathlib import Path
from typing import Any

_OURS = frozenset({"core", "data_pipeline", "sweeps", "pretune"})
_MOST_FILES, _MOST_BYTES = 500, 4 * 2**20
_FOLDERS_WITHOUT_CODE = frozenset({"__pycache__", ".git", ".venv", "venv", "node_modules"})
EXAMPLE = "my_module.py:MyModel"
SOURCE_FILE = "class_source.json"
"""File in the results folder of a sweep, and in an exported model: the source of its class."""


class CodeNotFoundError(ValueError):
    """Settings name a class that cannot be found, or that may not be used; the message is the rule and the remedy."""


@dataclass(frozen=True)
class ClassCode:
    """The source of one class, and of the package around it."""

    class_path: str
    """As the settings name it."""
    module: str
    """Name under which its module is imported."""
    class_name: str
    files: tuple[tuple[str, str], ...]
    """(path below `folder`, text) of each file, sorted. Of an installed package: its module alone."""
    folder: str
    """Folder that the paths begin in, for messages."""
    is_installed: bool
    """True: Python imports it from its own packages, which every machine must have."""

    @property
    def digest(self) -> str:
        """SHA-256 of the names and texts of its files, in hexadecimal. The folder has no part in it."""
        digest = hashlib.sha256()
        for name, text in self.files:
            encoded = text.encode()
            digest.update(f"{name} {len(encoded)}\n".encode())
            digest.update(encoded)
        return digest.hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Plain values, for another process or a file."""
        return {
            "class": self.class_path,
            "module": self.module,
            "class_name": self.class_name,
            "files": dict(self.files),
            "folder": self.folder,
            "is_installed": self.is_installed,
        }


def code_of_json(values: dict[str, Any]) -> ClassCode:
    """The code of `ClassCode.as_json`.

    Raises:
        ValueError: The values are of another kind.
    """
    texts = [values.get(name) for name in ("class", "module", "class_name", "folder")]
    files, is_installed = values.get("files"), values.get("is_installed")
    is_text = all(isinstance(one, str) for one in texts)
    if not is_text or not isinstance(files, dict) or not isinstance(is_installed, bool):
        raise ValueError("it holds no source of a class")
    if not all(isinstance(one, str) for pair in files.items() for one in pair):
        raise ValueError("its files are no texts")
    class_path, module, class_name, folder = (str(one) for one in texts)
    return ClassCode(class_path, module, class_name, tuple(sorted(files.items())), folder, is_installed)


def find_code(class_path: str, folders: Sequence[Path]) -> ClassCode:
    """The source of a class. Of two folders that have it, the first counts; installed packages come last.

    Args:
        class_path: `package.module:Class`, or `file.py:Class` with a path below one of the folders.
        folders: The folder of the settings file, then the current one.

    Raises:
        CodeNotFoundError: No such module or class, a module that would hide another one, or a fault in its syntax.
    """
    where, colon, class_name = class_path.rpartition(":")
    if not colon or not where or not class_name.isidentifier():
        raise CodeNotFoundError(f"names no class; write module:Class or file.py:Class, as in {EXAMPLE}")
    if where.endswith(".py"):
        return _in_file(class_path, where, class_name, folders)
    if not all(part.isidentifier() for part in where.split(".")):
        raise CodeNotFoundError(f"{where} is not the name of a module; write module:Class, as in {EXAMPLE}")
    return _in_module(class_path, where, class_name, folders)


def _in_file(class_path: str, where: str, class_name: str, folders: Sequence[Path]) -> ClassCode:
    for folder in folders:
        path = folder / Path(where).expanduser()
        if path.is_file():
            text = _text_of(path)
            _check_class(text, path, class_name)
            # The name of a file may be that of any module (`random.py`), so its own is one that nothing else has.
            name = f"user_code_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
            return ClassCode(class_path, name, class_name, ((path.name, text),), str(path.parent.absolute()), False)
    near = [file for folder in folders for file in _files_near(folder, Path(where).name)]
    remedy = f"did you mean {near[0]}:{class_name}?" if near else "give a path below the folder of the file"
    raise CodeNotFoundError(f"there is no file {where} in {_in_words(folders)}; {remedy}")


def _in_module(class_path: str, where: str, class_name: str, folders: Sequence[Path]) -> ClassCode:
    top = where.split(".")[0]
    for folder in folders:
        package, file = folder / top, folder / f"{top}.py"
        if not file.is_file() and not (package / "__init__.py").is_file():
            continue
        path = _module_file(folder, where)
        if path is None:
            raise CodeNotFoundError(f"there is no module {where} in {folder}; check the name after {top}")
        _check_name(top, folder)
        files = dict(_files_of_package(package, folder)) if file != path else {file.name: _text_of(file)}
        _check_class(files[path.relative_to(folder).as_posix()], path, class_name)
        return ClassCode(class_path, where, class_name, tuple(sorted(files.items())), str(folder.absolute()), False)
    installed = _installed_file(where) if top not in _OURS | sys.stdlib_module_names else None
    if installed is None:
        raise CodeNotFoundError(
            f"there is no module {where} in {_in_words(folders)}, nor among installed packages; give the path of its "
            f"file, as in {EXAMPLE}"
        )
    text = _text_of(installed)
    _check_class(text, installed, class_name)
    return ClassCode(class_path, where, class_name, ((installed.name, text),), str(installed.parent), True)


def _check_name(top: str, folder: Path) -> None:
    """Check that a module of the user hides no other one."""
    if top in _OURS or top in sys.stdlib_module_names:
        owner = "pretune" if top in _OURS else "Python"
        raise CodeNotFoundError(f"{folder / top} has the name of a module of {owner}; rename it")
    spec = _found_by_python(top)
    if spec is not None and spec.origin is not None and not _is_below(Path(spec.origin), folder):
        raise CodeNotFoundError(f"{folder / top} has the name of an installed package ({spec.origin}); rename it")


def _found_by_python(name: str) -> ModuleSpec | None:
    """Where Python finds a top-level module. It imports nothing, unlike `importlib.util.find_spec` of a submodule."""
    return PathFinder.find_spec(name)


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _installed_file(where: str) -> Path | None:
    search: list[str] | None = None
    parts = where.split(".")
    for number, _ in enumerate(parts, start=1):
        spec = PathFinder.find_spec(".".join(parts[:number]), search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
    is_source = spec is not None and spec.origin is not None and spec.origin.endswith(".py")
    return Path(spec.origin) if spec is not None and spec.origin is not None and is_source else None


def _module_file(folder: Path, where: str) -> Path | None:
    base = folder.joinpath(*where.split("."))
    candidates = (base.with_name(f"{base.name}.py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _files_of_package(package: Path, folder: Path) -> Iterator[tuple[str, str]]:
    num_files, num_bytes = 0, 0
    for path in sorted(package.rglob("*.py")):
        if _FOLDERS_WITHOUT_CODE & set(path.relative_to(package).parts):
            continue
        text = _text_of(path)
        num_files, num_bytes = num_files + 1, num_bytes + len(text)
        if num_files > _MOST_FILES or num_bytes > _MOST_BYTES:
            raise CodeNotFoundError(
                f"the package {package} has more than {_MOST_FILES} files or {_MOST_BYTES // 2**20} MiB of source; "
                "move the class into a smaller one, or install the package"
            )
        yield path.relative_to(folder).as_posix(), text


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CodeNotFoundError(f"{path} is larger than {_MOST_BYTES // 2**20} MiB; move the class elsewhere")
        return decode_source(path.read_bytes())
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise CodeNotFoundError(f"{path} cannot be read ({error}); save it as UTF-8") from error


def _check_class(text: str, path: Path, class_name: str) -> None:
    """Check by the syntax alone that a file has the class."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise CodeNotFoundError(f"{path}:{error.lineno}: {error.msg}; correct that line") from error
    except ValueError as error:  # Zero bytes.
        raise CodeNotFoundError(f"{path} is no Python: {error}; correct the file") from error
    names = list(_names_of(tree))
    if class_name not in names:
        near = difflib.get_close_matches(class_name, names, n=1)
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        known = ", ".join(classes) or "none"
        remedy = f"did you mean {near[0]}?" if near else f"its classes are: {known}"
        raise CodeNotFoundError(f"{path} has no class {class_name}; {remedy}")


def _names_of(tree: ast.Module) -> Iterator[str]:
    """Names that the module binds at its top level, also within `if` and `try`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _files_near(folder: Path, name: str) -> list[str]:
    return difflib.get_close_matches(name, [path.name for path in folder.glob("*.py")], n=1)


def _in_words(folders: Sequence[Path]) -> str:
    return " or ".join(dict.fromkeys(str(folder.absolute()) for folder in folders))
