"""Settings of all tests of the core."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and on a busy machine threads wait for each other."""
    torch.set_num_threads(1)
