"""What `pretune --help` says."""

import os
import subprocess
import sys

import pytest

from command import ROOT

COLUMNS, LINES = 80, 40
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
