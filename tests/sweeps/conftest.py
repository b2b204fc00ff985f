from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from finished_sweep import TinySweep, tiny_sweep_in


@pytest.fixture(scope="module")
def no_ray_left() -> Iterator[None]:
    """For modules that run commands in this process: those that have to judge rows start Ray in it, once for all."""
    yield
    import ray  # Most tests need none of it.

    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_sweep(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> TinySweep:
    """Run once, by the first test of all processes that asks for it."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent  # Which all processes of this run of pytest have in common.
    with FileLock(folder / "tiny-sweep.lock"):
        return tiny_sweep_in(folder / "tiny-sweep")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests of tiny models in this process, which gain nothing from threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store on SQLite without runs, to be copied: to make one takes MLflow seconds, to open one none."""
    from mlflow.tracking import MlflowClient  # Most tests need none of it.

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
