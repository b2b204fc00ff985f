"""A driver notices that the Ray which it started has lost a process without which nothing trains again."""

import time
from typing import Any

import psutil
from ray import tune

from data_pipeline.files.machine_faults import MachineFault
from sweeps.early_stopping.token_scheduler import KeptOutOfPickles
from sweeps.execution.machine_halt import SweepHaltedError

_NEEDED = ("gcs_server", "raylet")
_LOOK_EVERY_S = 1.0


class SeesLostRay(KeptOutOfPickles, tune.Callback):
    """Ends the sweep when a server of the driver's own Ray has ended: Ray would wait for it without end.

    A cluster that others have started is left to them: it may get other nodes.
    """

    def __init__(self) -> None:
        """Watch the servers of Ray that are children of this process."""
        self._watched = {one: name for one in psutil.Process().children() if (name := one.name()) in _NEEDED}
        self._look_at = 0.0

    def on_step_begin(self, iteration: int, trials: Any, **_: Any) -> None:
        """Look, once a second.

        Raises:
            SweepHaltedError: One of them has ended.
        """
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        for server, name in self._watched.items():
            if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
                reason = f"Ray's process {name} on this machine has ended"
                remedy = "The system may have killed it for memory: end other programs"
                raise SweepHaltedError(MachineFault("", reason, remedy))
