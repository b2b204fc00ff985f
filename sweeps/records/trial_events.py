"""What happens to a trial, as listeners of the ledger hear it."""

from enum import StrEnum


class TrialEvent(StrEnum):
    """One thing that happened to a trial."""

    STARTED = "started"
    REPORT = "report"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ENDED = "ended"
