"""A command that loses its terminal or pipe continues, and its log has the rest of its output."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import ROOT
from data_pipeline.schema.terminal_text import echo
from sweeps.commands.command_frame import terminal
from sweeps.commands.lost_terminal import OUTPUT_LOG, outlives_its_terminal


def gone_pipe() -> int:
    """The writing end of a pipe that nobody reads: EPIPE."""
    reads, writes = os.pipe()
    os.close(reads)
    return writes


def gone_terminal() -> int:
    """A terminal whose window was closed: EIO."""
    window, ours = pty.openpty()
    os.close(window)
    return ours


@pytest.mark.parametrize("gone", [gone_pipe, gone_terminal])
def test_lines_for_a_terminal_that_is_gone_are_in_the_log_once_and_in_order(
    gone: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(gone(), "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with outlives_its_terminal(tmp_path):
            console = terminal()
            echo("progress ü")
            console.print("summary")
            echo("x" * 20_000)
            echo("end")
        # The interpreter flushes the stream at its end: an error there would change the exit code.
        stream.flush()
    first, *others = (tmp_path / OUTPUT_LOG).read_text("utf-8").splitlines()
    assert first == f"process {os.getpid()}: its terminal is gone; the output continues here"
    assert others == ["progress ü", "summary", "x" * 20_000, "end"]


def test_output_of_a_command_with_a_reader_is_not_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = tmp_path / "printed"
    with printed.open("w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with outlives_its_terminal(tmp_path):
            echo("progress")
        assert sys.stdout is stream
    assert printed.read_text() == "progress\n"
    assert not (tmp_path / OUTPUT_LOG).exists()


@pytest.mark.parametrize("name", ["a link", "a missing folder"])
def test_output_is_dropped_where_the_log_cannot_be_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "others").write_text("theirs")
    (tmp_path / "a link").mkdir()
    (tmp_path / "a link" / OUTPUT_LOG).symlink_to(tmp_path / "others")
    with open(gone_pipe(), "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with outlives_its_terminal(tmp_path / name):
            echo("a")
            echo("b")
        stream.flush()
    assert (tmp_path / "others").read_text() == "theirs"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_without_a_reader_ends_with_its_own_exit_code(unbuffered: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from sweeps.commands.command_frame import terminal\n"
        "from sweeps.commands.lost_terminal import outlives_its_terminal\n"
        f"with outlives_its_terminal(Path({str(tmp_path)!r})):\n"
        "    terminal().print('one')\n"
        "print('after', file=sys.stderr, flush=True)\n"
        "sys.exit(130)"
    )
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    gone = gone_pipe()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=gone, stderr=gone)
    os.close(gone)
    assert done.returncode == 130
    assert (tmp_path / OUTPUT_LOG).read_text().splitlines()[1:] == ["one", "after"]


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_command_with_closed_streams_ends_with_its_own_exit_code(closed: str) -> None:
    done = subprocess.run(["sh", "-c", f'"$0" -m sweeps explain training.beta2 {closed}', sys.executable], cwd=ROOT)
    assert done.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["--help", "explain", "explain --help"])
def test_a_command_that_prints_to_a_reader_that_has_ended_ends_without_a_word(arguments: str, unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = _without_reader(arguments.split(), stderr=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_fault_that_nobody_reads_has_its_exit_code() -> None:
    assert _without_reader(["plan", "missing.yaml"], stderr=subprocess.STDOUT).returncode == 2


def _without_reader(arguments: list[str], **how: Any) -> subprocess.CompletedProcess[bytes]:
    gone = gone_pipe()
    try:
        return subprocess.run([sys.executable, "-m", "sweeps", *arguments], cwd=ROOT, stdout=gone, **how)
    finally:
        os.close(gone)
