"""The six ways a trial ends."""

from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of a trial. Every table, tag and message distinguishes these six."""

    COMPLETED = "COMPLETED"
    """Trained all its tokens."""
    STOPPED = "STOPPED"
    """Ended at a rung by early stopping; its loss there is known, its final loss is not."""
    INFEASIBLE = "INFEASIBLE"
    """Does not fit in memory."""
    DIVERGED = "DIVERGED"
    """The loss or gradient exploded or is no longer finite."""
    INTERRUPTED = "INTERRUPTED"
    """A process or node was lost, or the machine failed; the settings are not to blame."""
    FAILED = "FAILED"
    """A bug: the trial's log has the traceback."""

    @property
    def is_final(self) -> bool:
        """Whether a resumed sweep leaves the trial as it is."""
        return self is not Outcome.INTERRUPTED

    @classmethod
    def given_up(cls) -> "tuple[Outcome, ...]":
        """Outcomes of trials that ended for good and without a result."""
        return (cls.INFEASIBLE, cls.DIVERGED, cls.FAILED)
