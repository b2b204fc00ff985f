"""Detect allocator thrashing: the CUDA allocator must empty its cache in every step to serve its requests.

Each retry waits for the device, so training runs at a fraction of its speed and is close to running out of memory.

Source: Composer treats such retries as out of memory (github.com/mosaicml/composer).
"""

from collections.abc import Callable

import torch

_STEPS_IN_A_ROW = 3
"""A new shape may cost one or two retries; steady training costs none."""


def allocator_retries(device: torch.device) -> Callable[[], int]:
    """Function that reads how often the allocator emptied its cache and retried; always 0 on a CPU.

    Also 0 for an allocator that keeps no count (`backend:cudaMallocAsync`). Not run on a GPU yet.
    """
    if device.type != "cuda":
        return lambda: 0
    return lambda: int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))


class Thrashing:
    """Detects that the number of allocator retries grows in every step.

    Args:
        count: Returns the number of retries so far.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._seen = count()
        self._steps = 0

    def is_steady(self) -> bool:
        """True if each of the last few steps had retries; the count then restarts. Call it once per step."""
        before, self._seen = self._seen, self._count()
        self._steps = self._steps + 1 if self._seen > before else 0
        if self._steps < _STEPS_IN_A_ROW:
            return False
        self._steps = 0
        return True
