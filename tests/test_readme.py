"""Every command of the README runs as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.sweep_file import resolve_sweep
from sweeps.yaml_places import read_yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
SWEEP_FILE = re.search(r"```yaml\n# my-sweep\.yaml\n(.*?)```", README, re.DOTALL)

# The two make targets are run by .ci/run, which this test is part of; these two by tests of their own.
ELSEWHERE = {
    "make quickstart": "run by .ci/run",
    "make test": "run by .ci/run",
    "pretune ui": "tests/sweeps/test_mlflow_ui.py",
    "ray job submit --working-dir .": "tests/sweeps/test_ray_job.py",
    "python tests/benchmarks": "tests/benchmarks/test_benchmarks_run.py",
}
HERE = [command for command in COMMANDS if not any(command.startswith(start) for start in ELSEWHERE)]


def test_the_sweep_file_of_the_readme_is_valid() -> None:
    assert SWEEP_FILE is not None
    assert resolve_sweep(read_yaml(SWEEP_FILE[1]), source="README.md").name == "my-sweep"


def test_every_file_that_the_readme_names_is_there() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(
        r"`((?:tests|sweeps|core|data_pipeline)/[\w/.]+)`", README
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_file_map_names_every_file_once() -> None:
    for package in ("data_pipeline", "core", "sweeps"):
        for path in (ROOT / package).glob("*.py"):
            if path.name not in ("__init__.py", "__main__.py"):
                assert len(re.findall(rf"^\s*{re.escape(path.name)}\s", README, re.MULTILINE)) == 1, path


def test_make_targets_of_the_readme_exist() -> None:
    for command in (command for command in COMMANDS if command.startswith("make ")):
        assert re.search(rf"^{command.removeprefix('make ')}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


@pytest.mark.ray
def test_every_pretune_command_of_the_readme_runs(tmp_path: Path) -> None:
    assert SWEEP_FILE is not None
    (tmp_path / "my-sweep.yaml").write_text(SWEEP_FILE[1])
    rows = (
        f'{{"text": "Row {number} holds {number * 7 % 1000} apples and {number % 13} pears."}}'
        for number in range(4000)
    )
    (tmp_path / "my-corpus.jsonl").write_text("\n".join(rows))
    labelled = [
        f"Row {number} holds {number % 7} {'figs' if number % 2 else 'nuts'},t{number % 2}" for number in range(60)
    ]
    (tmp_path / "my-labelled.csv").write_text("\n".join(["text,topic", *labelled]))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert len(HERE) >= 3
    for command in HERE:
        done = subprocess.run(
            shlex.split(command),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert list(tmp_path.glob("results/my-sweep-*/best/model.safetensors"))
