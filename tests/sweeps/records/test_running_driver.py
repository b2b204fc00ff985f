"""The driver of a sweep, found from its lock and asked to end; real processes hold real locks."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command import ROOT
from data_pipeline.schema.user_errors import InputFault
from patience import HANGS_AFTER_S
from sweeps.records.results_folder import LOCK_FILE
from sweeps.records.running_driver import ask_to_end, driver_of

HOLDS = """
import sys, time
from pathlib import Path
from sweeps.execution.signals import terminated_like_interrupted
from sweeps.records.sweep_lock import hold
try:
    with hold(Path(sys.argv[1]), say=print), terminated_like_interrupted():
        print("holds", flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    sys.exit(130)
"""


@contextmanager
def driver(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock of a folder, and ends as a sweep does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder / LOCK_FILE)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_driver_is_seen_while_it_lives_and_ends_as_by_ctrl_c_when_asked(tmp_path: Path) -> None:
    assert driver_of(tmp_path) is None
    with driver(tmp_path) as process:
        found = driver_of(tmp_path)
        assert found is not None
        assert found.holder.pid == process.pid
        assert ask_to_end(tmp_path, patience_s=HANGS_AFTER_S)
        assert process.wait(HANGS_AFTER_S) == 130
    assert driver_of(tmp_path) is None


def test_a_killed_driver_is_no_driver_although_its_lock_file_names_it(tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        process.kill()
        process.wait()
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == process.pid
        assert driver_of(tmp_path) is None
        with pytest.raises(InputFault, match="no process runs this sweep"):
            ask_to_end(tmp_path, patience_s=1)


def test_a_lock_file_of_somebody_else_ends_no_process_of_ours(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as bystander:
        try:
            planted = {"pid": bystander.pid, "host": os.uname().nodename, "mark": "x", "beat": 1}
            (tmp_path / LOCK_FILE).write_text(json.dumps(planted))
            with pytest.raises(InputFault, match="no process runs this sweep"):
                ask_to_end(tmp_path, patience_s=1)
            time.sleep(0.2)
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_a_driver_on_another_machine_is_seen_by_its_pulse_and_stopped_there(tmp_path: Path) -> None:
    lock = tmp_path / LOCK_FILE
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "mark": "x", "beat": 1}))
    with pytest.raises(InputFault, match="run pretune stop on elsewhere"):
        ask_to_end(tmp_path, patience_s=1)
    os.utime(lock, (0, 0))
    assert driver_of(tmp_path) is None
