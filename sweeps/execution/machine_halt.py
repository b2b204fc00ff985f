"""A sweep ends as a whole when its machine fails: no trial is to blame, and every other one would fail as well."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.files.machine_faults import MachineFault, machine_fault


class SweepHaltedError(BaseException):
    """The machine cannot train on. No `Exception`, which Tune would take for a fault of one trial and wrap."""

    def __init__(self, fault: MachineFault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@contextmanager
def halts_for_the_machine(folder: Path) -> Iterator[None]:
    """Let a fault of the machine in the block end the sweep; other errors pass.

    Args:
        folder: The sweep's folder: the place of a fault that names none.

    Raises:
        SweepHaltedError: An error in the block comes of the machine.
    """
    try:
        yield
    except Exception as error:
        fault = machine_fault(error, near=folder)
        if fault is None:
            raise
        raise SweepHaltedError(fault) from error
