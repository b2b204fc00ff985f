"""The READMEs are true: files and links are there, maps are whole, sweep files are valid, tests run all commands."""

import re
from pathlib import Path

import pytest

from sweeps.commands.cli import app
from sweeps.settings.sweep_file import resolve_sweep
from sweeps.settings.yaml_lines import read_yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_pipeline", "core", "sweeps")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NOT_IN_MAPS = {"README.md", "__init__.py", "__main__.py"}
MADE = {"results", "build"}
"""Folders that commands make, beside hidden ones."""


def is_ours(path: Path) -> bool:
    return not any(part.startswith(".") or part in MADE for part in path.relative_to(ROOT).parts)


READMES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(ROOT.rglob("README.md"))
    if is_ours(path)
}
FIRST_PAGE = READMES["README.md"]
LARGEST_FIRST_PAGE_BYTES = 8192
"""Two screens. Everything else is in the README of its folder."""

CODE_FOLDERS = sorted({path.parent.relative_to(ROOT).as_posix() for path in FILES} - set(PACKAGES))
FILE_MAP = re.compile(r"^## Files\n+```\n(.*?)^```", re.MULTILINE | re.DOTALL)
MAPS = {name: found[1].splitlines() for name, text in READMES.items() if (found := FILE_MAP.search(text))}
"""README to the lines of its map: a file, two spaces or more, a comment."""
MOST_WORDS = 6

ALL_TEXT = "\n".join(READMES.values())
PROSE = re.sub(r"```.*?```", "", ALL_TEXT, flags=re.DOTALL)
INLINE = re.findall(r"`((?:pretune|mlflow|make|pytest|pip|ray) [^`]+)`", PROSE)
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", ALL_TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
SWEEP_FILE = re.search(r"```yaml\n# my-sweep\.yaml\n(.*?)```", FIRST_PAGE, re.DOTALL)
NAMED_SWEEP_FILES = re.findall(r"```yaml\n(name: .*?)```", ALL_TEXT, re.DOTALL)
ORDER_OF_MEETING = [
    str(command.name or getattr(command.callback, "__name__", "")) for command in app.registered_commands
]

ELSEWHERE = {
    "make quickstart": ".ci/run",
    "make test": ".ci/run",
    "make quick": "Makefile",  # Its tests are a part of `make test`.
    "pip install -c constraints.txt -e": "Makefile",  # With another extra.
    "pytest -m slow": "pyproject.toml",
    "pretune ui": "tests/sweeps/tracking/test_mlflow_ui.py",
    "pretune report results/quickstart-... --pictures": "tests/test_readme_commands.py",
    "pretune sweep sweeps/configs/chinese.yaml": "tests/run_systems.py",
    "pretune train sweeps/configs/chinese-train.yaml": "tests/run_systems.py",
    "pretune sweep sweeps/configs/chinese-sft.yaml": "tests/run_systems.py",
    "pretune train sweeps/configs/chinese-sft-train.yaml": "tests/run_systems.py",
    "pretune finetune sweeps/configs/traffic-classify.yaml": "tests/run_systems.py",
    "pretune generate results/chinese-sft-train-": "tests/sweeps/trained_models/test_chat.py",
    "mlflow models predict --env-manager local": "tests/sweeps/tracking/test_mlflow_model.py",
    "ray job submit --working-dir .": "tests/sweeps/commands/test_ray_job.py",
    "ray job logs": "tests/sweeps/commands/test_ray_job.py",
    "ray get-auth-token": "tests/sweeps/commands/test_ray_job.py",
    "ray up": "tests/sweeps/deploy/test_deploy.py",
    "docker buildx imagetools inspect": "tests/sweeps/deploy/test_deploy.py",
    "docker build -f": "tests/sweeps/deploy/test_deploy.py",
    "python tests/benchmarks": "tests/benchmarks/test_benchmarks_run.py",
}
"""Beginnings of commands that other files run; `test_readme_commands.py` runs all others."""


def is_elsewhere(command: str) -> bool:
    return any(command.startswith(start) for start in ELSEWHERE)


def commands_to_run() -> list[str]:
    """Commands of the READMEs that stand nowhere else, in the order in which a user meets them."""
    inline = [command for command in INLINE if command.startswith("pretune ") and "my-sweep.yaml" in command]
    commands = [command for command in dict.fromkeys([*COMMANDS, *inline]) if not is_elsewhere(command)]
    return sorted(commands, key=lambda command: ORDER_OF_MEETING.index(command.split()[1]))


# The first page


def test_the_first_page_is_at_most_two_screens() -> None:
    num_bytes = len(FIRST_PAGE.encode())
    assert num_bytes <= LARGEST_FIRST_PAGE_BYTES, (
        f"README.md has {num_bytes:,} bytes, {num_bytes - LARGEST_FIRST_PAGE_BYTES:,} too many: move what is about one "
        "folder to the README.md of that folder"
    )


def test_the_first_page_has_one_line_for_each_folder_of_code() -> None:
    lines = re.findall(r"^- \[(\w+)\]\(([\w/]+)/\): .+$", FIRST_PAGE, re.MULTILINE)
    assert sorted(folder for _, folder in lines) == CODE_FOLDERS
    assert [folder for name, folder in lines if folder.rpartition("/")[2] != name] == []


# Maps of files


def test_every_folder_of_code_has_a_map_of_its_files() -> None:
    assert len(CODE_FOLDERS) >= 29
    assert [folder for folder in CODE_FOLDERS if f"{folder}/README.md" not in MAPS] == []


@pytest.mark.parametrize("readme", MAPS)
def test_a_map_names_every_file_of_its_folder_once_and_no_other(readme: str) -> None:
    named = [line.split()[0] for line in MAPS[readme]]
    files = (path for path in (ROOT / readme).parent.iterdir() if path.is_file() and is_ours(path))
    there = [path.name for path in files if path.name not in NOT_IN_MAPS and not path.name.startswith("test_")]
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("readme", MAPS)
def test_every_comment_of_a_map_has_at_most_six_words(readme: str) -> None:
    num_words = {line: len(line.split()) - 1 for line in MAPS[readme]}
    assert [line for line, count in num_words.items() if not 1 <= count <= MOST_WORDS] == []


# Links and names


@pytest.mark.parametrize("readme", READMES)
def test_every_link_leads_to_a_file_a_folder_or_a_heading(readme: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", READMES[readme])
    assert [link for link in links if not resolves(link, (ROOT / readme).parent, readme)] == []


def resolves(link: str, folder: Path, readme: str) -> bool:
    file, _, heading = link.partition("#")
    target = (folder / file).resolve() if file else ROOT / readme
    is_there = target.exists() and target.is_relative_to(ROOT)
    return is_there and (not heading or heading in headings(target.read_text(encoding="utf-8")))


def headings(text: str) -> set[str]:
    """Names under which GitHub links to the headings of a text."""
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("readme", READMES)
def test_every_file_that_a_readme_names_by_its_path_is_there(readme: str) -> None:
    named = re.findall(r"`((?:tests|sweeps|core|data_pipeline)/[\w/.-]+)[ `]", READMES[readme])
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_function_that_is_given_as_an_example_is_there() -> None:
    text = READMES["tests/README.md"]
    named = re.findall(r"`(_?[a-z]+_[a-z_]+)`", text[text.index("To add | write") :])
    sources = "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert len(named) >= 3
    assert [name for name in named if f"def {name}(" not in sources] == []


# Sweep files


def test_the_sweep_file_of_the_first_page_is_valid() -> None:
    assert SWEEP_FILE is not None
    assert resolve_sweep(read_yaml(SWEEP_FILE[1]), source="README.md").name == "my-sweep"


@pytest.mark.parametrize("text", NAMED_SWEEP_FILES)
def test_every_whole_sweep_file_of_the_readmes_is_valid(text: str) -> None:
    assert text.startswith(f"name: {resolve_sweep(read_yaml(text), source='a README').name}\n")


# Commands


def test_files_that_run_commands_of_the_readmes_are_there_and_name_what_they_run() -> None:
    for start, file in ELSEWHERE.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        program, subcommand = start.split()[:2]
        words = {"python": "benchmark", "pytest": "slow", "pip": "pip install"}
        assert words.get(program, subcommand.strip("-")) in text, f"{file} does not run {start}"


def test_every_command_of_the_readmes_is_one_that_is_run() -> None:
    programs = {command.split()[0] for command in COMMANDS if not is_elsewhere(command)}
    assert programs == {"pretune"}
    assert len(COMMANDS) >= 20


def test_every_inline_command_of_the_readmes_runs_somewhere() -> None:
    # A command's name alone, as in "`pretune sweep` resumes", is no command to give.
    given = [command for command in INLINE if len(command.split()) > 2]
    assert len(given) >= 5
    assert [command for command in given if command not in commands_to_run() and not is_elsewhere(command)] == []


def test_make_targets_of_the_readmes_exist() -> None:
    commands = [command for command in COMMANDS if command.startswith("make ")]
    assert commands
    for command in commands:
        assert re.search(rf"^{command.removeprefix('make ')}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
