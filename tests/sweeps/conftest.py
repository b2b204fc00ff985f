from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from finished_sweep import TinySweep, run_tiny_sweep


@pytest.fixture
def no_ray_left() -> Iterator[None]:
    """For tests that run commands in this process: one that had to judge rows has started Ray in it."""
    yield
    import ray  # Most tests need none of it.

    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_sweep(tmp_path_factory: pytest.TempPathFactory) -> TinySweep:
    """Run by the first test of all modules that asks for it."""
    return run_tiny_sweep(tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("store"))


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
