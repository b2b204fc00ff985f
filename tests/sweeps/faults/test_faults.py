"""Faults at chosen moments of real sweeps: nothing is lost, and the same command continues."""

import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_list import FAULTS, Fault
from fault_table import Row, write_row
from struck_sweep import StruckSweep
from sweep_accounts import Trained, check_accounts, check_same_training, trained, trained_again

from patience import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Undisturbed:
    """A sweep that no fault strikes."""

    results: Path
    trained: Trained


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Undisturbed:
    """Run once for all faults."""
    kept = request.config.getoption("--undisturbed", default=None)
    sweep = StruckSweep((Path(kept) if kept else tmp_path_factory.mktemp("undisturbed")) / "results")
    sweep.start()
    assert sweep.end() == 0, sweep.output
    check_accounts(sweep)
    return Undisturbed(sweep.results, trained(sweep))


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[StruckSweep]:
    """A sweep before its start; the traces of its fault are removed afterwards."""
    sweep = StruckSweep(tmp_path / "results")
    yield sweep
    if sweep.is_running:
        sweep.kill()
    for undo in reversed(sweep.at_end):
        undo()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_after_a_fault_the_same_command_ends_the_sweep_with_the_weights_of_an_undisturbed_one(
    fault: Fault, sweep: StruckSweep, undisturbed: Undisturbed, empty_store: Path, request: pytest.FixtureRequest
) -> None:
    shutil.copy(empty_store, sweep.results / "mlflow.db")
    if fault.uses_prepared_corpus:
        for name in ("prepared", "memory"):
            shutil.copytree(undisturbed.results / name, sweep.results / name)
    fault.cause(sweep)
    sweep.end_or_again()
    assert "Traceback" not in sweep.output
    wait_until(lambda: not sweep.processes_left(), lambda: f"{sweep.processes_left()}")
    check_accounts(sweep, uri=sweep.environment.get("MLFLOW_TRACKING_URI"))
    again = trained_again(sweep)
    check_same_training(trained(sweep), undisturbed.trained)
    if request.config.getoption("--write-table", default=False):
        write_row(row_of(fault, sweep, again), [one.name for one in FAULTS])


def row_of(fault: Fault, sweep: StruckSweep, again: int) -> Row:
    """The row of a fault whose sweep has ended with equal accounts and weights.

    Args:
        again: Tokens trained again.
    """
    names = {-signal.SIGKILL: "killed"}
    ended = [names.get(code, f"exit code {code}") for code in sweep.codes[:-1]]
    way = sweep.continued_by if ended else "itself"
    return Row(fault.name, fault.running, ", ".join(ended) or "-", f"{again:,}", "equal", way)
