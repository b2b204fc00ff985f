"""The floors of the house: data_pipeline <- core <- sweeps, no circles, nothing happens on import."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "data_pipeline": {"data_pipeline"},
    "core": {"data_pipeline", "core"},
    "sweeps": {"data_pipeline", "core", "sweeps"},
}
FILES = sorted(path for package in FLOORS for path in (ROOT / package).rglob("*.py"))


@functools.cache
def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            modules.add(node.module)
    return modules


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_every_package_has_folders_with_files_to_look_at() -> None:
    for package in FLOORS:
        folders = {path.parent for path in FILES if path.is_relative_to(ROOT / package)} - {ROOT / package}
        assert len(folders) >= 4, package


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_package_imports_only_itself_and_packages_to_its_left(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {module for module in imported_modules(path) if module.split(".")[0] in FLOORS}
    assert {module.split(".")[0] for module in ours} <= FLOORS[package]


@pytest.mark.parametrize("path", [path for path in FILES if path.relative_to(ROOT).parts[0] == "core"], ids=module_name)
def test_core_knows_neither_ray_nor_mlflow_nor_transformers(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported_modules(path)}
    assert not roots & {"ray", "mlflow", "transformers"}


def test_no_import_goes_in_a_circle() -> None:
    graph = {module_name(path): imported_modules(path) for path in FILES}
    names = set(graph)
    ours = {name: {module for module in modules if module in names} for name, modules in graph.items()}
    order = list(graphlib.TopologicalSorter(ours).static_order())  # Raises CycleError and names the circle.
    assert len(order) == len(names)


def test_type_checking_hides_no_import() -> None:
    hiding = [path.name for path in FILES if "TYPE_CHECKING" in path.read_text(encoding="utf-8")]
    assert hiding == []


def test_file_names_are_unique_in_the_tree() -> None:
    names = [path.name for path in FILES if path.name not in ("__init__.py", "__main__.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.long
def test_importing_everything_prints_nothing_and_starts_nothing() -> None:
    modules = [module_name(path) for path in FILES if path.name != "__main__.py"]
    code = (
        "import importlib, os, sys, threading\n"
        "import ray, torch, mlflow, optuna, tensorboardX\n"
        "environment, threads = dict(os.environ), threading.active_count()\n"
        f"for name in {modules!r}: importlib.import_module(name.removesuffix('.__init__'))\n"
        "assert dict(os.environ) == environment, 'the environment was changed'\n"
        "assert not ray.is_initialized()\n"
        "assert threading.active_count() == threads, threading.enumerate()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
