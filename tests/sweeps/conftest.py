import pytest

from finished_sweep import TinySweep, run_tiny_sweep


@pytest.fixture(scope="session")
def tiny_sweep(tmp_path_factory: pytest.TempPathFactory) -> TinySweep:
    """Run by the first test of all modules that asks for it."""
    return run_tiny_sweep(tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("store"))
