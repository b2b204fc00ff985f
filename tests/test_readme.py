"""The README is true: files it names are there, its sweep file is valid, its commands are run by some test."""

import re
from pathlib import Path

from sweeps.settings.sweep_file import resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = sorted(path for package in ("data_pipeline", "core", "sweeps") for path in (ROOT / package).rglob("*.py"))
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
SWEEP_FILE = re.search(r"```yaml\n# my-sweep\.yaml\n(.*?)```", README, re.DOTALL)

PROSE = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
INLINE = re.findall(r"`((?:pretune|mlflow|make|pytest|pip|ray) [^`]+)`", PROSE)

ELSEWHERE = {
    "make quickstart": ".ci/run",
    "make test": ".ci/run",
    "make quick": "Makefile",  # Part of `make test`.
    "pip install -c constraints.txt -e": "Makefile",  # With another extra.
    "pytest -m slow": "pyproject.toml",
    "pretune ui": "tests/sweeps/tracking/test_mlflow_ui.py",
    "pretune sweep sweeps/configs/quickstart.yaml --set resources.memory=90MiB": "tests/test_readme_commands.py",
    "pretune report results/quickstart-... --pictures": "tests/test_readme_commands.py",
    "pretune train sweeps/configs/chinese-train.yaml": "tests/run_systems.py",
    "pretune sweep sweeps/configs/chinese-sft.yaml": "tests/run_systems.py",
    "pretune train sweeps/configs/chinese-sft-train.yaml": "tests/run_systems.py",
    "pretune finetune sweeps/configs/traffic-classify.yaml": "tests/run_systems.py",
    "pretune generate results/chinese-sft-train-": "tests/sweeps/trained_models/test_chat.py",
    "mlflow models predict --env-manager local": "tests/sweeps/tracking/test_mlflow_model.py",
    "ray job submit --working-dir .": "tests/sweeps/commands/test_ray_job.py",
    "ray job logs": "tests/sweeps/commands/test_ray_job.py",
    "ray get-auth-token": "tests/sweeps/commands/test_ray_job.py",
    "ray up": "tests/sweeps/commands/test_deploy.py",
    "python tests/benchmarks": "tests/benchmarks/test_benchmarks_run.py",
}
"""Beginnings of commands that other files run; `test_readme_commands.py` runs all others."""


def is_elsewhere(command: str) -> bool:
    return any(command.startswith(start) for start in ELSEWHERE)


def test_files_that_run_commands_of_the_readme_are_there_and_name_what_they_run() -> None:
    for start, file in ELSEWHERE.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        program, subcommand = start.split()[:2]
        words = {"python": "benchmark", "pytest": "slow", "pip": "pip install"}
        assert words.get(program, subcommand.strip("-")) in text, f"{file} does not run {start}"


def test_every_inline_command_of_the_readme_runs_somewhere() -> None:
    # A command's name alone, as in "`pretune sweep` goes on", is no command to give.
    given = [command for command in INLINE if len(command.split()) > 2]
    assert len(given) >= 5
    assert [command for command in given if command not in commands_to_run() and not is_elsewhere(command)] == []


def commands_to_run() -> list[str]:
    """Commands of the README that stand nowhere else, in its order: those of its blocks, then those of its prose."""
    inline = [command for command in INLINE if command.startswith("pretune ") and "my-sweep.yaml" in command]
    return [command for command in dict.fromkeys([*COMMANDS, *inline]) if not is_elsewhere(command)]


def test_the_sweep_file_of_the_readme_is_valid() -> None:
    assert SWEEP_FILE is not None
    assert resolve_sweep(read_yaml(SWEEP_FILE[1]), source="README.md").name == "my-sweep"


def test_every_file_that_the_readme_names_is_there() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(
        r"`((?:tests|sweeps|core|data_pipeline)/[\w/.]+)`", README
    )
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_function_that_the_readme_takes_as_an_example_is_there() -> None:
    table = README[README.index("To add | write") :]
    named = re.findall(r"`(_?[a-z]+_[a-z_]+)`", table)
    sources = "".join(path.read_text() for path in FILES)
    assert len(named) >= 3
    assert [name for name in named if f"def {name}(" not in sources] == []


def test_the_file_map_names_every_file_once() -> None:
    files = [path for path in FILES if path.name not in ("__init__.py", "__main__.py")]
    assert len(files) > 200
    for path in files:
        assert len(re.findall(rf"^\s*{re.escape(path.name)}\s", README, re.MULTILINE)) == 1, path


def test_make_targets_of_the_readme_exist() -> None:
    commands = [command for command in COMMANDS if command.startswith("make ")]
    assert commands
    for command in commands:
        assert re.search(rf"^{command.removeprefix('make ')}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
