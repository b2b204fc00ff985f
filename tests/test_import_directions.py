"""The floors of the house: data_pipeline <- core <- sweeps, folders as layers.toml has them, nothing happens on import.

Imports count wherever they stand, in functions too, and so does a module that is named in a string, for
`importlib.import_module` or `python -m`.
"""

import ast
import functools
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_pipeline", "core", "sweeps")
"""From left to right: each imports itself and those before it."""
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def folder_name(path: Path) -> str:
    return path.parent.relative_to(ROOT).as_posix()


MODULES = {module_name(path): path for path in FILES}
FOLDERS = sorted({folder_name(path) for path in FILES})
DATA = tomllib.loads((ROOT / "tests/layers.toml").read_text(encoding="utf-8"))
WITHOUT: dict[str, list[str]] = DATA.pop("without")
LAYERS: dict[str, set[str]] = {folder: set(entry["may_import"]) for folder, entry in DATA.items()}
OUR_NAME = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.[a-z_][a-z0-9_]*)+")


@functools.cache
def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            modules |= inner or {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and OUR_NAME.fullmatch(node.value):
            modules.add(node.value)
    return modules


def our_imports(path: Path) -> set[str]:
    """Modules of ours."""
    return {module for module in imported_modules(path) if module.split(".")[0] in PACKAGES}


def folder_imports(folder: str) -> dict[str, list[str]]:
    """Other folders that one imports, each with the files that do."""
    files = [path for path in FILES if folder_name(path) == folder]
    assert files, f"{folder} holds no file to look at"
    found: dict[str, list[str]] = {}
    for path in files:
        for module in our_imports(path) & MODULES.keys():
            found.setdefault(folder_name(MODULES[module]), []).append(path.name)
    return {other: sorted(set(names)) for other, names in found.items() if other != folder}


def files_of(package: str) -> list[Path]:
    """Python files below a folder; some, or every test of them would pass."""
    files = [path for path in FILES if path.is_relative_to(ROOT / package)]
    assert files, f"{package} holds no file to look at"
    return files


def test_every_package_has_folders_with_files_to_look_at() -> None:
    for package in PACKAGES:
        folders = {folder_name(path) for path in files_of(package)} - {package}
        assert len(folders) >= 4, package
        assert all(len([path for path in FILES if folder_name(path) == folder]) >= 2 for folder in folders), package
    assert sum(len(our_imports(path)) for path in FILES) > len(FILES)


def test_layers_toml_names_every_folder_and_no_other() -> None:
    missing, gone = sorted(set(FOLDERS) - LAYERS.keys()), sorted(LAYERS.keys() - set(FOLDERS))
    assert not missing, f"tests/layers.toml lacks {missing}"
    assert not gone, f"tests/layers.toml names {gone}, where there is no Python file"
    unknown = {folder: sorted(allowed - LAYERS.keys()) for folder, allowed in LAYERS.items() if allowed - LAYERS.keys()}
    assert not unknown, f"tests/layers.toml allows imports of folders that are not there: {unknown}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_folders_that_layers_toml_allows(folder: str) -> None:
    forbidden = {other: names for other, names in folder_imports(folder).items() if other not in LAYERS[folder]}
    assert not forbidden, f"{folder} may not import {forbidden}; move the code, or allow it in tests/layers.toml"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_permission_of_layers_toml_is_used(folder: str) -> None:
    unused = sorted(LAYERS[folder] - folder_imports(folder).keys())
    assert not unused, f"{folder} does not import {unused}; take the permission out of tests/layers.toml"


def test_the_allowed_imports_of_folders_have_no_circle() -> None:
    order = list(graphlib.TopologicalSorter(LAYERS).static_order())  # Raises CycleError and names the circle.
    assert len(order) == len(LAYERS) > 0


def test_packages_are_allowed_only_packages_to_their_left() -> None:
    for folder, allowed in LAYERS.items():
        own = PACKAGES.index(folder.split("/")[0])
        rightwards = sorted(other for other in allowed if PACKAGES.index(other.split("/")[0]) > own)
        assert not rightwards, f"tests/layers.toml lets {folder} import {rightwards}, to its right"


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_init_file_holds_the_idea_of_its_folder_and_nothing_else(folder: str) -> None:
    tree = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))
    assert len(tree.body) == 1, f"{folder}/__init__.py holds more than a docstring; importing a folder imports nothing"
    assert ast.get_docstring(tree) == DATA[folder]["idea"], f"{folder}/__init__.py and tests/layers.toml differ"


@pytest.mark.parametrize("path", files_of("core"), ids=module_name)
def test_core_knows_neither_ray_nor_mlflow_nor_transformers(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported_modules(path)}
    known = sorted(roots & {"ray", "mlflow", "transformers"})
    assert not known, f"{module_name(path)} imports {known}; core is plain torch"


@pytest.mark.parametrize("library", WITHOUT)
def test_modules_that_do_without_a_library_keep_it_out_of_their_process(library: str) -> None:
    modules = [module_name(path) for place in WITHOUT[library] for path in files_of(place)]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    assert {library!r} not in sys.modules, f'{{name}} imports {library}, perhaps through another module'\n"
        "print(len(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    assert int(done.stdout) > len(modules) > 2


def test_modules_that_are_named_in_strings_are_there() -> None:
    named = {name: path for path in FILES for name in our_imports(path)}
    assert len(named) > 200
    gone = {name: path.name for name, path in named.items() if name not in MODULES}
    assert not gone, f"no such modules: {gone}"


def test_no_import_of_files_goes_in_a_circle() -> None:
    graph = {module_name(path): our_imports(path) & MODULES.keys() - {module_name(path)} for path in FILES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # Raises CycleError and names the circle.
    assert len(order) == len(FILES) > 200


def test_type_checking_hides_no_import() -> None:
    assert len(FILES) > 200
    hiding = [path.name for path in FILES if "TYPE_CHECKING" in path.read_text(encoding="utf-8")]
    assert not hiding, f"imports under TYPE_CHECKING in {hiding}"


def test_file_names_are_unique_in_the_tree() -> None:
    names = [path.name for path in FILES if path.name not in ("__init__.py", "__main__.py")]
    assert len(names) > 200
    repeated = sorted({name for name in names if names.count(name) > 1})
    assert not repeated, f"several files are called {repeated}"


@pytest.mark.long
def test_importing_everything_prints_nothing_and_starts_nothing() -> None:
    modules = [module_name(path) for path in FILES if path.name != "__main__.py"]
    assert len(modules) > 200
    code = (
        "import importlib, os, sys, threading\n"
        "import ray, torch, mlflow, optuna, tensorboardX\n"
        "environment, threads = dict(os.environ), threading.active_count()\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert dict(os.environ) == environment, 'the environment was changed'\n"
        "assert not ray.is_initialized()\n"
        "assert threading.active_count() == threads, threading.enumerate()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
