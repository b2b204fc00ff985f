"""Which libraries a command imports: the time before its first word is mostly imports.

Commands import inside their functions. These tests read those imports from the source, so a new one is looked at, too.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from command import ROOT

COMMANDS = ROOT / "sweeps" / "commands"
OURS = ("data_pipeline", "core", "sweeps")
WITHOUT_RAY = (
    *("new", "prepare", "plan", "status", "stop", "estimate", "report", "ui"),
    *("evaluate", "fill_mask", "generate", "export", "embed", "finetune"),
)
WITHOUT_TORCH = ("ui", "new", "prepare")
"""The other commands count parameters of models or compute with them."""


def modules_of(command: str) -> set[str]:
    """Modules of ours that a command imports when it runs."""
    functions = {
        node.name: node
        for path in COMMANDS.glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    found = {
        node.module
        for node in ast.walk(functions[command])
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS
    }
    assert found, f"{command} imports nothing of ours: the test looks at the wrong place"
    return found


def imported_with(modules: Iterable[str], library: str) -> bool:
    """Whether importing these modules imports a library, in a fresh process."""
    code = (
        "import sys\n" + "".join(f"import {name}\n" for name in sorted(modules)) + f"print({library!r} in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1] == "True"


def test_commands_around_a_sweep_import_no_ray() -> None:
    assert not imported_with(set().union(*map(modules_of, WITHOUT_RAY)), "ray")


def test_commands_that_compute_nothing_import_no_torch() -> None:
    assert not imported_with(set().union(*map(modules_of, WITHOUT_TORCH)), "torch")


def test_a_command_that_needs_ray_is_seen_to_import_it() -> None:
    assert imported_with(modules_of("sweep"), "ray")


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["plan", "no-such-file.yaml"]])
def test_help_and_a_mistake_in_a_path_load_no_heavy_library(arguments: list[str], tmp_path: Path) -> None:
    # A finder that refuses them ends the process where one of them is asked for.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name not in ('ray', 'torch', 'mlflow', 'sklearn', 'matplotlib', 'pandas'), name\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "Error" not in done.stderr, done.stderr
    assert done.returncode in (0, 2)


def printed_without(libraries: Iterable[str], *arguments: str, folder: Path) -> str:
    """Output of a command on the quickstart, in a process where these libraries cannot be imported."""
    refusal = f"import sys\nsys.modules.update(dict.fromkeys({list(libraries)!r}))\n"
    (folder / "sitecustomize.py").write_text(refusal)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sweeps", *arguments, "sweeps/configs/quickstart.yaml"),
            *("--results", str(folder / "results"), "--set", "model.width=24", "--set", "model.layers=1"),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "told"), [(["plan", "--no-measure"], "What fits"), (["estimate"], "largest micro-batch")]
)
def test_a_plan_needs_no_search_nor_statistics_and_a_second_one_no_trace(
    command: list[str], told: str, tmp_path: Path
) -> None:
    # scipy and Optuna are for sweeps; torch's compiler belongs to fake tensors, on which memory is predicted.
    first = printed_without(["ray", "scipy", "optuna"], *command, folder=tmp_path)
    assert told in first
    assert printed_without(["ray", "scipy", "optuna", "torch._dynamo"], *command, folder=tmp_path) == first
