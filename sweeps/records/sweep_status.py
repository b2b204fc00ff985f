"""How far a sweep has come."""

from enum import StrEnum


class SweepStatus(StrEnum):
    """Status of a sweep, as `summary.json` keeps it."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    """By the user, or by a fault of the machine."""
    INCOMPLETE = "incomplete"
    """Trials were given up after losing their workers."""
