"""An allocator that finds room only by giving back its cache, step after step: as good as out of memory.

Each time it waits for the device, so training goes on at a fraction of its speed, one row away from failing.

Source: Composer counts such retries as out of memory (github.com/mosaicml/composer).
"""

from collections.abc import Callable

import torch

_STEPS_IN_A_ROW = 3
"""A new shape may cost a retry or two; steady training costs none."""


def allocator_retries(device: torch.device) -> Callable[[], int]:
    """Reads how often the device's allocator had to give back its cache to find room; always 0 on a CPU.

    Not run on a GPU yet.
    """
    if device.type != "cuda":
        return lambda: 0
    return lambda: int(torch.cuda.memory_stats_as_nested_dict(device)["num_alloc_retries"])


class Thrashing:
    """Whether the allocator's retries grow with every step.

    Args:
        count: Retries so far.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._seen = count()
        self._steps = 0

    def is_steady(self) -> bool:
        """Asked once a step, after its work: whether each of the last steps had retries. True begins anew."""
        before, self._seen = self._seen, self._count()
        self._steps = self._steps + 1 if self._seen > before else 0
        if self._steps < _STEPS_IN_A_ROW:
            return False
        self._steps = 0
        return True
