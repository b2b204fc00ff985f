"""What workers tell of memory and speed, as plain values: a process that only passes it on need not import torch."""

from dataclasses import dataclass
from typing import Literal

from core.memory.out_of_memory import OomFacts

LimitBy = Literal["counting", "rlimit"]
"""How a limit is enforced on a CPU: tensors are counted, or the kernel refuses the whole process (RLIMIT_DATA)."""


@dataclass(frozen=True, slots=True)
class OutOfMemoryEvent:
    """One shortage of memory that a run survived."""

    facts: OomFacts
    step: int
    """Optimizer steps taken before."""
    size: int
    """Rows at once with which it happened."""
    smaller: int
    """Rows at once from then on; the same as before where there was nothing to shrink."""
    is_neighbours: bool = False
    """Somebody else had the memory: it says nothing about what fits."""


@dataclass(frozen=True)
class MicroBatchSpeed:
    """What a few passes with one micro-batch showed."""

    rows: int
    """That one worker held at once."""
    rows_per_s: float | None
    """Of one worker, forward and backward; None: it ran out of memory."""
    peak_bytes: int | None
    """Most bytes of tensors live in these passes, on this worker; an update may need more."""
