"""Every use of another package's private names is listed with a contract, in one folder a package."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from private_names import ROOT, private_names

PACKAGES = ("data_pipeline", "core", "sweeps")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OF_NAMED_TUPLES = {"_asdict", "_replace", "_fields", "_make"}
"""Public, as Python's documentation says; the underscore keeps them apart from fields."""
DOTTED_PRIVATE = re.compile(r"[a-z]\w*(?:\.\w+)*\.(?:_\w+)(?:\.\w+)*")
UNLISTED = [module for names in private_names().values() for module in names.internal]


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_private(part: str) -> bool:
    return part.startswith("_") and not part.endswith("__") and part.strip("_") != "" and part not in OF_NAMED_TUPLES


def is_foreign(name: str) -> bool:
    root = name.split(".")[0]
    return root not in PACKAGES and root not in sys.stdlib_module_names


def is_internal(name: str) -> bool:
    """Whether a full name of another package is private or lies in a module that no promise covers."""
    return is_foreign(name) and (
        any(map(is_private, name.split("."))) or any(f"{name}.".startswith(f"{module}.") for module in UNLISTED)
    )


def own_names(tree: ast.AST) -> set[str]:
    """Names that a file gives: functions, classes, variables, fields, attributes that it sets on itself."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return names


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Full names."""
    before = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return [before + alias.name for alias in node.names]


def private_uses(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each use of a private name that the file itself does not give.

    Full names of imports and of strings (loggers, `getattr`), bare ones of attributes, whose object is not known here.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in imported(node) if is_internal(name) or is_ours(name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED_PRIVATE.fullmatch(node.value):
            if is_internal(node.value):
                yield node.lineno, node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if isinstance(name, str) and is_private(name) and name not in own:
                yield node.lineno, name


def is_ours(name: str) -> bool:
    """Whether it is a private name of our own."""
    return name.split(".")[0] in PACKAGES and any(map(is_private, name.split(".")))


def listed(path: Path, name: str) -> list[tuple[str, str]]:
    """Package and full name of the entries of private_names.toml that a use may mean."""
    return [
        (package, full)
        for package, names in private_names().items()
        for full, files in names.names.items()
        if short(path) in files and (full == name or full.split(".")[-1] == name)
    ]


def test_there_are_files_and_private_names_to_look_at() -> None:
    assert len(FILES) > 200
    assert len(list(private_uses(ROOT / "sweeps/lanes/elastic_lanes.py"))) >= 5
    assert set(private_names()) == {"ray", "mlflow", "optuna", "torch"}
    assert all(names.names for names in private_names().values())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_private_name_that_is_used_is_listed_with_its_contract(package: str) -> None:
    files = [path for path in FILES if path.is_relative_to(ROOT / package)]
    assert files
    unlisted = [
        f"{short(path)}:{line} uses {name}, "
        + ("private to another file of ours" if is_ours(name) else "which tests/private_names.toml does not list there")
        for path in files
        for line, name in private_uses(path)
        if not listed(path, name)
    ]
    assert not unlisted, "\n".join(unlisted)


@pytest.mark.parametrize("package", private_names())
def test_private_names_of_a_package_are_used_in_its_folder_alone(package: str) -> None:
    names = private_names()[package]
    outside = {name: file for name, files in names.names.items() for file in files if not is_in(file, names.folder)}
    assert names.names
    assert not outside, f"private names of {package} belong into {names.folder}: {outside}"


def is_in(file: str, folder: str) -> bool:
    return Path(file).parent == Path(folder)


@pytest.mark.parametrize("package", private_names())
def test_every_listed_name_is_used_where_the_list_says(package: str) -> None:
    names = private_names()[package].names
    assert names
    gone = {name: file for name, files in names.items() for file in files if not mentions(ROOT / file, name)}
    assert not gone, f"no longer used, or no longer there: {gone}; take them out of tests/private_names.toml"
    assert all(names.values())


def mentions(path: Path, name: str) -> bool:
    last = name.split(".")[-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom) and name in imported(node):
            return True
        if isinstance(node, ast.Attribute) and node.attr == last:
            return True
        if isinstance(node, ast.Constant) and node.value in (name, last):
            return True
    return False


@pytest.mark.parametrize("package", private_names())
def test_every_listed_name_stands_in_the_contracts_of_its_package(package: str) -> None:
    names = private_names()[package]
    tree = ast.parse((ROOT / names.contracts).read_text(encoding="utf-8"))
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert names.names
    missing = sorted(names.names.keys() - said)
    assert not missing, f"{names.contracts} has no contract with {missing}"
