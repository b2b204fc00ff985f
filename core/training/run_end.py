"""The end of a training run: outcome, metrics, memory."""

from dataclasses import dataclass
from typing import Literal

from core.memory.memory_reports import OutOfMemoryEvent
from core.memory.out_of_memory import OomFacts
from core.settings.cooldown_branch import Branch

Outcome = Literal["completed", "paused", "stopped", "infeasible", "diverged"]


@dataclass(frozen=True)
class RunEnd:
    """The end of a run; the same on every rank."""

    outcome: Outcome
    reason: str
    """Explanation of the outcome for users, with its numbers."""
    metrics: dict[str, float]
    """Metrics of the last evaluation, under the keys of reports; empty without one. Paused: those of the branch."""
    tokens: int
    """Tokens trained on by all workers; paused: those of the trunk."""
    micro_batch_size_used: int | None
    """Micro-batch size of the last step; below the requested one if memory ran out and `on_oom` is shrink."""
    peak_memory_bytes: int | None
    """Largest peak of one worker: live tensor bytes on a CPU, reserved bytes on CUDA."""
    oom: OomFacts | None = None
    """The out-of-memory error that ended the run."""
    oom_events: tuple[OutOfMemoryEvent, ...] = ()
    """Out-of-memory events that the run survived, by step; only rank 0 knows of those while writing checkpoints."""
    branch: Branch | None = None
    """The branch of a paused run."""
