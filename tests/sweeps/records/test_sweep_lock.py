"""Who may carry a sweep out, with real processes, signals and the kernel's locks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from command import ROOT
from patience import HANGS_AFTER_S, wait_until
from sweeps.records import sweep_lock
from sweeps.records.sweep_lock import Holder, SweepRunsAlreadyError, hold

_HOLDER = """
import sys, time
from pathlib import Path
from sweeps.records.sweep_lock import hold
with hold(Path(sys.argv[1]), say=print, beat_s=0.05, silence_s=1):
    print("holds", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def no_word(text: str) -> None:
    raise AssertionError(f"nothing was to be said: {text}")


def test_a_second_process_is_refused_with_the_pid_and_host_of_the_first(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with (
        another_process(lock) as other,
        pytest.raises(SweepRunsAlreadyError, match=rf"running already \(pid {other.pid} on {os.uname().nodename}\)"),
        hold(lock, say=no_word),
    ):
        pass


def test_a_process_killed_on_this_host_holds_nothing_and_nobody_waits_for_it(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with another_process(lock) as other:
        other.kill()
        other.wait()
    assert lock.read_bytes() != b""
    with hold(lock, say=no_word):
        pass


def test_processes_that_a_killed_driver_left_behind_are_gone_when_the_next_one_holds(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with _driver_with_a_worker(lock) as (driver, left):
        driver.kill()
        driver.wait()
        assert left.is_running()
        with hold(lock, say=no_word):
            # Killed, and without memory of its own; the kernel may still have it in its list for an instant.
            wait_until(lambda: not left.is_running() or left.status() == psutil.STATUS_ZOMBIE, "it was not killed")


def test_a_planted_holder_ends_no_process_of_another_sweep(tmp_path: Path) -> None:
    # Both sweeps are the user's own; somebody copies the lock of the one that runs into the folder of the other.
    mine, other = tmp_path / "mine" / ".lock", tmp_path / "other" / ".lock"
    for lock in (mine, other):
        lock.parent.mkdir()
    with _driver_with_a_worker(mine) as (driver, worker):
        other.write_bytes(mine.read_bytes())
        with hold(other, say=no_word):
            assert worker.is_running()
        # A lock that was replaced is free for the kernel, but its driver lives.
        copied = mine.read_bytes()
        mine.unlink()
        mine.write_bytes(copied)
        with hold(mine, say=no_word):
            assert worker.status() != psutil.STATUS_ZOMBIE
        # Whatever is written there, only processes with a mark are looked at.
        for planted in (b"[" * 600, b'{"pid": 1, "host": [], "mark": {}}', b"\0" * 600):
            other.write_bytes(planted)
            with hold(other, say=no_word):
                assert worker.status() != psutil.STATUS_ZOMBIE
        assert driver.poll() in (None, -signal.SIGKILL)  # Its own pulse ends a driver whose lock was taken over.


@contextmanager
def _driver_with_a_worker(lock: Path) -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """A process that holds the lock, and a process that it has started."""
    script = _HOLDER.replace("import sys,", "import os, subprocess, sys,").replace(
        'print("holds"',
        'from sweeps.records.orphan_processes import driver_mark; os.environ["PRETUNE_DRIVER"] = driver_mark();'
        'left = subprocess.Popen(["sleep", "3600"]); print(left.pid',
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script, str(lock)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert driver.stdout is not None
    worker = psutil.Process(int(driver.stdout.readline()))
    try:
        yield driver, worker
    finally:
        for process in (driver, worker):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        driver.communicate()


def test_what_was_let_go_is_free_at_once_for_every_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".lock"
    with hold(lock, say=no_word):
        pass
    monkeypatch.setattr(sweep_lock.socket, "gethostname", lambda: "another-host")
    with hold(lock, say=no_word):
        pass


def left_by(path: Path, host: str, beats: Callable[[], int]) -> None:
    path.write_text(json.dumps({"pid": 17, "host": host, "mark": "17-1", "beat": beats()}))


def test_a_holder_on_another_host_is_waited_for_and_then_taken_to_be_dead(tmp_path: Path) -> None:
    lock, said = tmp_path / ".lock", list[str]()
    left_by(lock, "node-b", lambda: 3)
    started_at = time.monotonic()
    with hold(lock, say=said.append, silence_s=0.5):
        assert time.monotonic() - started_at >= 0.5
    assert "pid 17 on node-b was the last to run this sweep; waiting up to" in said[0]
    assert "pid 17 on node-b gives no sign of life" in said[1]


def test_a_holder_on_another_host_whose_pulse_beats_is_not_disturbed(tmp_path: Path) -> None:
    # Its kernel's lock does not reach here: the file alone tells.
    lock, ends = tmp_path / ".lock", threading.Event()
    beat = 0

    def beats() -> int:
        nonlocal beat
        beat += 1
        return beat

    def live() -> None:
        while not ends.wait(0.1):
            left_by(lock, "node-b", beats)

    left_by(lock, "node-b", beats)
    other = threading.Thread(target=live)
    other.start()
    try:
        with (
            pytest.raises(SweepRunsAlreadyError, match=r"\(pid 17 on node-b\)"),
            hold(lock, say=lambda _: None, silence_s=5),
        ):
            pass
    finally:
        ends.set()
        other.join()


def test_where_the_file_system_has_no_locks_the_pulse_alone_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    lock = tmp_path / ".lock"
    monkeypatch.setattr(sweep_lock.fcntl, "flock", unsupported)
    with (
        another_process(lock) as other,
        pytest.raises(SweepRunsAlreadyError, match=f"pid {other.pid} on "),
        hold(lock, say=lambda _: None, silence_s=5),
    ):
        pass
    said: list[str] = []
    with hold(lock, say=said.append, silence_s=0.3):
        pass
    assert f"pid {other.pid} on " in said[1]


def test_a_process_that_stood_still_and_was_taken_to_be_dead_ends_without_another_word(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with another_process(lock) as other:
        lock.write_text(json.dumps(Holder(18, "node-c", "18-2").__dict__))
        assert other.wait(HANGS_AFTER_S) == -signal.SIGKILL
        assert other.stderr is not None
        assert "pid 18 on node-c has taken over this sweep" in other.stderr.read()
