"""The command line as a user runs it: a process of its own, in a terminal's process group."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from patience import COMMAND_HANGS_AFTER_S

ROOT = Path(__file__).parents[2]


def start(*arguments: str | Path, mark: str = "") -> subprocess.Popen[str]:
    """Start `python -m sweeps ...`; every process that comes of it carries `mark` in its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "sweeps", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PRETUNE_TEST_MARK": mark, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=listen_to_ctrl_c,
    )


def listen_to_ctrl_c() -> None:
    """A shell starts its background jobs with SIGINT ignored, and children inherit that: a terminal's do not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*arguments: str | Path) -> tuple[int, str]:
    """Run a command to its end: exit code, and what it printed."""
    process = start(*arguments)
    output, _ = process.communicate(timeout=COMMAND_HANGS_AFTER_S)
    return process.returncode, output


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What a command prints up to the line with this text."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} was never printed:\n{seen}")


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """SIGINT to the whole process group, as a terminal sends it."""
    os.killpg(process.pid, signal.SIGINT)


def processes_marked(mark: str) -> list[psutil.Process]:
    """Processes alive that were started, however indirectly, by a command with this mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PRETUNE_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
