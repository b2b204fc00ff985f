"""Process large tensors in blocks that fit in the cache, so that consecutive operators reuse cached data.

On a CPU, operators on tensors larger than the cache wait for memory. On a GPU, launching an operator costs more than
its memory traffic, so blocks are large there and only bound the memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_AS_ON_A_GPU = ContextVar("as_on_a_gpu", default=False)
_BLOCKS_AT_MOST: ContextVar[int | None] = ContextVar("blocks_at_most", default=None)


def has_cache_blocks(device: torch.device) -> bool:
    """True if work on this device uses cache-sized blocks."""
    return device.type == "cpu" and not _AS_ON_A_GPU.get()


def blocks(length: int, at_once: int) -> Iterator[slice]:
    """Slices that cover `length` from front to back, each of size `at_once` (at least one)."""
    at_once = max(1, at_once)
    for start in range(0, length, at_once)[: _BLOCKS_AT_MOST.get()]:
        yield slice(start, min(start + at_once, length))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Context in which models on the CPU use the block sizes of a GPU, to predict its memory."""
    token = _AS_ON_A_GPU.set(True)
    try:
        yield
    finally:
        _AS_ON_A_GPU.reset(token)


@contextmanager
def shortened() -> Iterator[None]:
    """Context in which only the first two blocks are processed, to predict memory; values are wrong.

    Blocks are alike, and the second one exists beside the remains of the first, so two blocks show the peak of all.
    """
    token = _BLOCKS_AT_MOST.set(2)
    try:
        yield
    finally:
        _BLOCKS_AT_MOST.reset(token)
