"""The command line as a user runs it: a process of its own, in a terminal's process group."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
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


def run_in_terminal(*arguments: str | Path, width: int = 120) -> tuple[int, str]:
    """Run a command to its end in a terminal of its own: exit code, and all that the terminal got, with its codes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # All processes have closed the terminal.
            break
        seen += piece
    os.close(ours)
    return process.wait(timeout=COMMAND_HANGS_AFTER_S), seen.decode(errors="replace")


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
