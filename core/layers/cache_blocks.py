"""Large tensors worked on block by block, so that an operator finds in the cache what the one before it wrote.

On a processor an operator over more than the cache holds waits for memory. On a GPU the launch of an operator costs
more than its memory traffic, so blocks are large there and only bound what is held at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_AS_ON_A_GPU = ContextVar("as_on_a_gpu", default=False)
_BLOCKS_AT_MOST: ContextVar[int | None] = ContextVar("blocks_at_most", default=None)


def has_cache_blocks(device: torch.device) -> bool:
    """Whether work on this device goes in blocks of the cache's size."""
    return device.type == "cpu" and not _AS_ON_A_GPU.get()


def blocks(length: int, at_once: int) -> Iterator[slice]:
    """Slices that cover `length` from front to back, `at_once` (at least one) in each."""
    at_once = max(1, at_once)
    for start in range(0, length, at_once)[: _BLOCKS_AT_MOST.get()]:
        yield slice(start, min(start + at_once, length))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, models on the CPU go a GPU's way: for predicting a GPU's memory without one."""
    token = _AS_ON_A_GPU.set(True)
    try:
        yield
    finally:
        _AS_ON_A_GPU.reset(token)


@contextmanager
def shortened() -> Iterator[None]:
    """Inside, only the first two blocks of anything are worked on: for predicting memory, without values.

    Blocks are alike, and the second lives beside what is left of the first, so two show the peak of any number.
    """
    token = _BLOCKS_AT_MOST.set(2)
    try:
        yield
    finally:
        _BLOCKS_AT_MOST.reset(token)
