"""Temporary folders of drivers: none is left, and none is taken from a driver that lives."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from command import ROOT
from sweeps.execution.temporary_state import temporary_state

_DRIVER = (
    "import sys\n"
    "from sweeps.execution.temporary_state import temporary_state\n"
    "with temporary_state() as path:\n"
    "    print(path, flush=True); sys.stdin.read()"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TMPDIR of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def driver() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_the_folder_of_a_killed_driver_is_removed_at_the_next_start_and_that_of_a_live_one_stays() -> None:
    with driver() as killed, driver() as alive:
        assert killed.stdout is not None
        assert alive.stdout is not None
        left, used = Path(killed.stdout.readline().strip()), Path(alive.stdout.readline().strip())
        (left / "state.json").write_text("{}")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.is_dir()
        with temporary_state() as path:
            assert path.is_dir()
            assert not left.exists()
            assert used.is_dir()
        assert not path.exists()
        alive.communicate()
    assert not used.exists()


def test_a_link_with_the_name_of_such_a_folder_and_its_target_stay(temporary: Path) -> None:
    target = temporary / "theirs"
    target.mkdir()
    (target / "file").write_text("theirs")
    link = temporary / "pretune-tune-x"
    link.symlink_to(target)
    with temporary_state():
        pass
    assert (link / "file").read_text() == "theirs"
