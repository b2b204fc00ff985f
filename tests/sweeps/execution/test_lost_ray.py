"""A driver whose Ray loses a server ends its sweep at once instead of waiting without end."""

import shutil
import subprocess
from pathlib import Path

import pytest

from patience import HANGS_AFTER_S
from sweeps.execution.lost_ray import SeesLostRay
from sweeps.execution.machine_halt import SweepHaltedError


@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_a_lost_server_of_its_own_ray_ends_a_sweep_with_its_name_and_a_remedy(tmp_path: Path, server: str) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, tmp_path / server)
    with subprocess.Popen([tmp_path / server, str(HANGS_AFTER_S)]) as child:
        seen = SeesLostRay()
        seen.on_step_begin(0, [])
        child.kill()
    seen._look_at = 0.0
    with pytest.raises(
        SweepHaltedError, match=f"Ray's process {server} on this machine has ended. The system may have"
    ):
        seen.on_step_begin(1, [])


def test_a_ray_that_others_have_started_is_left_to_them() -> None:
    SeesLostRay().on_step_begin(0, [])
