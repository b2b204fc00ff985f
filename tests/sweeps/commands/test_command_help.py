"""What `pretune --help` says, what a shell completes, and where colours are."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from command import ROOT
from patience import HANGS_AFTER_S

COLUMNS, LINES = 80, 44
"""A terminal of modest size."""


@pytest.fixture(scope="module")
def page() -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": str(COLUMNS)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_the_help_fits_a_screen_with_a_line_for_each_command(page: list[str]) -> None:
    assert len(page) <= LINES
    assert all(len(line) <= COLUMNS for line in page)
    # A description that went on would stand on a line that begins with blanks inside the frame.
    commands = page[next(index for index, line in enumerate(page) if "Before a sweep" in line) :]
    assert [line for line in commands if line.startswith("│  ")] == []


def test_commands_are_grouped_as_a_user_meets_them(page: list[str]) -> None:
    order = [
        *("Before a sweep", "│ new ", "│ plan ", "│ prepare "),
        *("The sweep", "│ sweep "),
        *("After a sweep", "│ ui ", "│ report ", "│ evaluate ", "│ export "),
    ]
    places = [next(index for index, line in enumerate(page) if words in line) for words in order]
    assert places == sorted(places)


def test_the_help_tells_the_exit_codes(page: list[str]) -> None:
    text = " ".join(" ".join(page).split())
    for meaning in ("0 done", "2 fault", "3 no trial completed", "4 trials given up", "130 interrupted"):
        assert meaning in text


ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def completed(*words: str) -> list[str]:
    """What bash offers for the last of the words, with the completion that `pretune` shows for it."""
    script = (
        f'eval "$(pretune --show-completion)"; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; '
        '_pretune_completion pretune; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=HANGS_AFTER_S,
    )
    return done.stdout.split()


def test_a_shell_completes_commands_and_options() -> None:
    assert sorted(completed("pretune", "e")) == ["embed", "estimate", "evaluate", "explain", "export"]
    assert completed("pretune", "sweep", "my-sweep.yaml", "--res") == ["--results"]


def test_a_shell_completes_the_settings_that_can_be_explained() -> None:
    found = ["training.beta1", "training.beta2", "training.beta2_half_life_tokens"]
    assert completed("pretune", "explain", "training.bet") == found
    assert completed("pretune", "sweep", "--explain", "training.bet") == found


def test_a_shell_completes_the_paths_of_sweep_files_itself() -> None:
    script = 'eval "$(pretune --show-completion)"; complete -p pretune'
    done = subprocess.run(["bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    # With this option bash looks for files where the program offers nothing.
    assert "-o default" in done.stdout
    assert completed("pretune", "sweep", "sweeps/configs/quick") == []


@pytest.mark.long
def test_a_fault_is_red_on_a_terminal_and_plain_in_a_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sweeps", "plan", str(tmp_path / "missing.yaml")]
    ours, theirs = pty.openpty()
    shown = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | {"TERM": "xterm"}, stdout=theirs, stderr=theirs)
    coloured = os.read(ours, 10_000).decode()
    piped = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert shown.returncode == piped.returncode == 2
    assert "\x1b[31m" in coloured
    assert "\x1b" not in piped.stdout + piped.stderr
    assert piped.stderr.startswith("pretune: ")
