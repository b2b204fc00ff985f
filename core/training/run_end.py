"""How one training run ended."""

from dataclasses import dataclass
from typing import Literal

from core.memory.memory_reports import OutOfMemoryEvent
from core.memory.out_of_memory import OomFacts
from core.settings.cooldown_branch import Branch

Outcome = Literal["completed", "paused", "stopped", "infeasible", "diverged"]


@dataclass(frozen=True)
class RunEnd:
    """How a run ended; the same on every rank."""

    outcome: Outcome
    reason: str
    """In words, with the numbers."""
    metrics: dict[str, float]
    """Of the last evaluation, under the keys of reports; empty when there was none. Of the branch, if it is paused."""
    tokens: int
    micro_batch_size_used: int | None
    """Of the last step; smaller than the one asked for if memory ran out and `on_oom` is shrink."""
    peak_memory_bytes: int | None
    """Most bytes live at once on one worker: of tensors on a CPU, of the caching allocator on CUDA."""
    oom: OomFacts | None = None
    """The shortage that ended it."""
    oom_events: tuple[OutOfMemoryEvent, ...] = ()
    """Those that it survived, in order; rank 0 alone knows of those in writing checkpoints."""
    branch: Branch | None = None
    """Of a run that is paused."""
