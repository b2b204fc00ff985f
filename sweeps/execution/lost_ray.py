"""A driver notices that the Ray which it started has lost a process without which nothing trains again."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from ray import tune

from data_pipeline.files.machine_faults import MachineFault
from sweeps.early_stopping.token_scheduler import KeptOutOfPickles
from sweeps.execution.machine_halt import SweepHaltedError

_NEEDED = ("gcs_server", "raylet")


class SeesLostRay(KeptOutOfPickles, tune.Callback):
    """Ends the sweep when a server of the driver's own Ray has ended.

    It must be quick. Ray waits for a lost GCS without end. A lost raylet takes the lanes with it, and Ray ends the
    driver with exit code 1 when Tune starts others. A cluster that others have started is left to them: it may get
    other nodes.
    """

    def __init__(self) -> None:
        """Watch the servers of Ray that are children of this process."""
        self._watched = {one: name for one in psutil.Process().children() if (name := one.name()) in _NEEDED}
        self._lost: str | None = None

    @contextmanager
    def ends_at_once(self) -> Iterator[None]:
        """End the block when one of them ends; call it in the main thread.

        Raises:
            SweepHaltedError: One of them has ended.
        """

        def look(_signal: int, _frame: Any) -> None:
            if self._lost is None:
                self._lost = next((name for one, name in self._watched.items() if _has_ended(one)), None)
                if self._lost is not None:
                    # The only one that Ray passes on when it comes while Ray waits.
                    raise KeyboardInterrupt

        # The system tells a parent at once that a child has ended.
        before = signal.signal(signal.SIGCHLD, look)
        # System calls of other threads, most of them not Python's, do not fail for it.
        signal.siginterrupt(signal.SIGCHLD, False)
        try:
            yield
        except KeyboardInterrupt:
            self._raise_if_lost()
            raise
        finally:
            signal.signal(signal.SIGCHLD, before)

    def on_step_begin(self, iteration: int, trials: Any, **_: Any) -> None:
        """End the sweep also if the interrupt was lost, as one is that comes while an object is deleted.

        Raises:
            SweepHaltedError: One of them has ended.
        """
        self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            reason = f"Ray's process {self._lost} on this machine has ended"
            remedy = "The system may have killed it for memory: end other programs"
            raise SweepHaltedError(MachineFault("", reason, remedy)) from None


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
