"""The six ways a trial ends."""

from enum import StrEnum


class Outcome(StrEnum):
    """How a trial ended. Six different things, told apart in every table, tag and message."""

    COMPLETED = "COMPLETED"
    """Trained all its tokens."""
    STOPPED = "STOPPED"
    """Ended at a rung by early stopping; its loss there is known, its final loss is not."""
    INFEASIBLE = "INFEASIBLE"
    """Does not fit in memory."""
    DIVERGED = "DIVERGED"
    """Loss or gradient no longer finite, or exploding."""
    INTERRUPTED = "INTERRUPTED"
    """A process or node was lost; says nothing about the settings."""
    FAILED = "FAILED"
    """A bug: the trial's log has the traceback."""

    @property
    def is_final(self) -> bool:
        """Whether the trial is not run again when the sweep resumes."""
        return self is not Outcome.INTERRUPTED
