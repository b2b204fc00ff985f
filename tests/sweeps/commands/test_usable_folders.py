"""TMPDIR and HOME that cannot be used: a command works all the same, or says so in one sentence."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from command import ROOT
from data_pipeline.files.own_files import private_temp_folder
from patience import HANGS_AFTER_S


def new(folder: Path, *before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that reads a corpus and writes a file, run with this environment in a folder."""
    (folder / "corpus.txt").write_text("\n".join(f"line {number} of the corpus" for number in range(300)))
    return subprocess.run(
        [*before, sys.executable, "-m", "sweeps", "new", "corpus.txt"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER_S,
    )


def a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda folder: folder / "nowhere", "does not exist"),
        (a_file, "is no folder"),
        (lambda _: Path("/proc"), "cannot be written"),
    ],
)
def test_a_temporary_folder_that_cannot_be_used_is_replaced_and_said(
    make: Callable[[Path], Path], fault: str, tmp_path: Path
) -> None:
    given = make(tmp_path)
    done = new(tmp_path, TMPDIR=str(given))
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"temp     TMPDIR={given} {fault}")
    assert line.endswith(" is used")


def test_a_full_temporary_folder_is_replaced_and_said(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("no right to mount (run as root)")
    (tmp_path / "full").mkdir()
    mount: Sequence[str] = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1M none full && exec "$@"', "sh")
    done = new(tmp_path, *mount, TMPDIR=str(tmp_path / "full"))
    assert done.returncode == 0, done.stderr
    assert "full has 1 MiB free" in done.stderr


def test_a_temporary_folder_that_works_is_kept_in_silence(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    for given in ({}, {"TMPDIR": str(long)}):
        done = new(tmp_path, **given)
        assert (done.returncode, done.stderr) == (0, "")
        (tmp_path / "sweep.yaml").unlink()


def test_a_home_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    done = new(tmp_path, HOME="/dev/null/none")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_temporary_folder_for_sockets_is_short_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Twice as many bytes as characters.
    long = tmp_path.parent / ("ü" * 30)
    long.mkdir(exist_ok=True)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    limit = len(str(long)) + 20
    assert private_temp_folder("pretune-test", longest=limit).parent == Path("/tmp")
