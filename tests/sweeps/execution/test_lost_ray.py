"""A driver whose Ray loses a server ends its sweep at once instead of waiting without end."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from patience import HANGS_AFTER_S
from sweeps.execution.lost_ray import SeesLostRay
from sweeps.execution.machine_halt import SweepHaltedError


@contextmanager
def server_of_ray(folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child of this process with the name of a server of Ray."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, folder / name)
    with subprocess.Popen([folder / name, str(HANGS_AFTER_S)]) as child:
        yield child
        child.kill()


def killed_and_waited_for(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    time.sleep(HANGS_AFTER_S)


@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_a_lost_server_of_its_own_ray_ends_a_waiting_driver_with_its_name_and_a_remedy(
    tmp_path: Path, server: str
) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    with (
        server_of_ray(tmp_path, server) as child,
        pytest.raises(SweepHaltedError, match=f"Ray's process {server} on this machine has ended. The system may have"),
        SeesLostRay().ends_at_once(),
    ):
        killed_and_waited_for(child)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_an_interrupt_that_another_library_drops_ends_the_sweep_at_its_next_step(tmp_path: Path) -> None:
    with server_of_ray(tmp_path, "raylet") as child:
        seen = SeesLostRay()
        seen.on_step_begin(0, [])
        with seen.ends_at_once(), suppress(KeyboardInterrupt):
            killed_and_waited_for(child)
        with pytest.raises(SweepHaltedError):
            seen.on_step_begin(1, [])


def test_other_children_of_the_driver_may_end(tmp_path: Path) -> None:
    with server_of_ray(tmp_path, "raylet"), SeesLostRay().ends_at_once():
        subprocess.run(["true"], check=True)


def test_ctrl_c_stays_ctrl_c_while_servers_are_watched() -> None:
    with pytest.raises(KeyboardInterrupt), SeesLostRay().ends_at_once():
        raise KeyboardInterrupt


def test_a_ray_that_others_have_started_is_left_to_them() -> None:
    SeesLostRay().on_step_begin(0, [])
