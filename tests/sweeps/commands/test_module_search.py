"""A folder of a project with modules of our names and of Python's: the command imports its own all the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import ROOT
from patience import HANGS_AFTER_S

THEIRS = ("core", "data_pipeline", "tokenizers", "random", "torch", "typer", "json", "numpy", "pandas")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    for name in THEIRS:
        (folder / f"{name}.py").write_text(f"raise SystemExit('their {name} was imported')")
    return folder


def run(*words: str, folder: Path, search: str = str(ROOT), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": search} | environment,
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER_S,
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(f"line {number} of a corpus" for number in range(400)))
    return path


@pytest.mark.parametrize("search", [str(ROOT), f":{ROOT}", f".:{ROOT}", f"{ROOT}:"])
def test_modules_of_the_current_folder_are_not_imported(project: Path, corpus: Path, search: str) -> None:
    done = run("-m", "sweeps", "new", str(corpus), folder=project, search=search)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_folder_of_pythonpath_with_modules_of_our_names_is_left_out_and_named(
    project: Path, corpus: Path, tmp_path: Path
) -> None:
    done = run("-m", "sweeps", "new", str(corpus), folder=tmp_path, search=f"{project}:{ROOT}")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line == (
        f"python   {project} of PYTHONPATH is not searched: its core.py would be imported in place of the module core"
    )


def test_a_module_in_place_of_an_installed_package_is_named_before_anything_starts(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "ray.py").write_text("")
    done = run("-m", "sweeps", "--help", folder=tmp_path, search=f"{folder}:{ROOT}")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"python   {folder / 'ray.py'} is imported in place of the installed ray; rename it, or take {folder} out of "
        "PYTHONPATH"
    ]


def test_a_folder_of_installed_packages_stays_in_the_search(tmp_path: Path) -> None:
    folder = tmp_path / "packages"
    (folder / "typing_extensions.dist-info").mkdir(parents=True)
    (folder / "dataclasses.py").write_text("")
    code = "import sys; from sweeps.commands.module_search import put_ours_first; print(put_ours_first(), sys.path)"
    done = run("-c", code, folder=tmp_path, search=f"{ROOT}:{folder}")
    assert done.stdout.startswith("[] ")
    assert str(folder) in done.stdout


def test_processes_that_come_of_a_command_search_no_current_folder(project: Path) -> None:
    code = (
        "from sweeps.commands.module_search import put_ours_first; put_ours_first()\nimport subprocess, sys\n"
        "code = 'import json, sys; print(json.dumps(sys.path))'\n"
        "print(subprocess.run([sys.executable, '-P', '-c', code], capture_output=True, text=True).stdout)"
    )
    done = run("-P", "-c", code, folder=project, search=f":{ROOT}:")
    assert done.returncode == 0, done.stderr
    searched = json.loads(done.stdout)
    assert str(ROOT) in searched
    assert not {"", ".", str(project)} & set(searched)


def test_the_installed_program_starts_with_the_same_search() -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"pretune": "sweeps.__main__:main"}
