"""Python's search for modules: ours and installed packages before files of the user that have the same names.

A folder of a project often holds a `core.py` or a `random.py`. Python would import it in place of ours or of its own,
in this process and, through PYTHONPATH, in every process that comes of it. This file needs modules that Python has
loaded before it searches any folder.
"""

import os
import sys
from collections.abc import Iterator

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_OURS = frozenset({"data_pipeline", "core", "sweeps"})
_INSTALLED = frozenset(
    {
        *("ray", "torch", "tokenizers", "pandas", "mlflow", "pyarrow", "filelock", "fsspec"),
        *("jinja2", "markupsafe", "matplotlib", "numpy", "optuna", "psutil", "pydantic", "yaml", "rich", "sklearn"),
        *("scipy", "safetensors", "tensorboardX", "typer", "zstandard", "transformers", "click", "grpc", "sqlalchemy"),
        "threadpoolctl",
    }
)
_PACKAGES = ("site-packages", "dist-packages")


def put_ours_first() -> list[str]:
    """Take folders of the user with modules of our names or of Python's out of the search, here and in PYTHONPATH.

    The current folder goes in any case: a stranger may have filled it.

    Returns:
        A line for each file that stays in front of an installed package, and for each folder of PYTHONPATH that went.
    """
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if "PYTHONPATH" in os.environ]
    here = _real(os.curdir)
    out, lines = {""}, []
    for folder in dict.fromkeys(_real(entry) for entry in [*sys.path[:1], *given]):
        if not folder or _holds_packages(folder):
            continue
        if folder == _real(_ROOT):
            taken = sorted(_names(folder) & (_INSTALLED | sys.stdlib_module_names))
            lines += [f"{_file(folder, name)} is imported in place of the module {name}; rename it" for name in taken]
            continue
        names = _names(folder)
        taken = sorted(names & (_OURS | sys.stdlib_module_names))
        if folder == here:
            out.add(folder)
        elif taken:
            out.add(folder)
            lines.append(
                f"{folder} of PYTHONPATH is not searched: its {os.path.basename(_file(folder, taken[0]))} would be "
                f"imported in place of the module {taken[0]}"
            )
        else:
            lines += [
                f"{_file(folder, name)} is imported in place of the installed {name}; rename it, or take {folder} out "
                "of PYTHONPATH"
                for name in sorted(names & _INSTALLED)
            ]
    sys.path[:] = [entry for entry in sys.path if _real(entry) not in out]
    if given:
        os.environ["PYTHONPATH"] = os.pathsep.join(one for one in given if _real(one) not in out)
    return lines


def _real(entry: str) -> str:
    """The folder of an entry without links; empty for the current folder after its removal."""
    try:
        return os.path.realpath(entry)
    except FileNotFoundError:
        return ""


def _holds_packages(folder: str) -> bool:
    """Whether a folder is Python's own, or one into which packages were installed."""
    if os.path.basename(folder) in _PACKAGES or folder == os.path.dirname(os.path.realpath(os.__file__)):
        return True
    return os.path.isdir(folder) and any(entry.endswith(".dist-info") for entry in os.listdir(folder))


def _names(folder: str) -> set[str]:
    """Names of the modules and packages that an import would find in a folder."""
    return {name for name, _ in _modules(folder)}


def _file(folder: str, name: str) -> str:
    return next(os.path.join(folder, file) for found, file in _modules(folder) if found == name)


def _modules(folder: str) -> Iterator[tuple[str, str]]:
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return
    for entry in entries:
        stem, extension = os.path.splitext(entry)
        if extension == ".py" or (not extension and os.path.isfile(os.path.join(folder, entry, "__init__.py"))):
            yield stem, entry
