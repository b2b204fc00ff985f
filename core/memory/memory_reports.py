"""Plain records that workers report about memory and speed; importable without torch."""

from dataclasses import dataclass
from typing import Literal

from core.memory.out_of_memory import OomFacts

LimitBy = Literal["counting", "rlimit"]
"""Mechanism of a memory limit on a CPU: tensors are counted, or the kernel limits the process (RLIMIT_DATA)."""


@dataclass(frozen=True, slots=True)
class OutOfMemoryEvent:
    """A worker ran out of memory, and the run survived it."""

    facts: OomFacts
    step: int
    """Optimizer steps taken before."""
    size: int
    """Micro-batch size, in rows, that ran out of memory."""
    smaller: int
    """Micro-batch size from then on; equal to `size` if nothing could shrink."""
    is_neighbours: bool = False
    """Another process held the memory, so the event is no evidence that `size` does not fit."""


@dataclass(frozen=True)
class MicroBatchSpeed:
    """Measured speed and memory of a few passes with one micro-batch size."""

    rows: int
    """Micro-batch size: rows of one pass on one worker."""
    rows_per_s: float | None
    """Rows per second of one worker, forward and backward. None: it ran out of memory."""
    peak_bytes: int | None
    """Peak of live tensor bytes in these passes on this worker; an update may need more."""
