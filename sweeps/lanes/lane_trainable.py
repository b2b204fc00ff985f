"""Tune's view of a lane: a Trainable that owns a lane and gives it one trial after another.

A trial of Tune is one leg of a trial of the sweep: from its start or a promotion to its next pause or its end. The lane
is therefore free for others while a trial waits, and Tune's own pausing, with its extra state, is not needed.
"""

from typing import Any

from ray import tune

from core.training.run_end import RunEnd
from sweeps.lanes.lane import (
    Lane,
    LaneMachineError,
    TrialFailedError,
    TrialOutOfMemoryError,
    WorkerKilledForMemoryError,
    WorkersLostError,
)
from sweeps.lanes.lane_spec import LaneSpec
from sweeps.lanes.mailbox import Assignment, EndMessage, ReportMessage, SpeedsMessage
from sweeps.records.outcomes import Outcome

MAX_INTERRUPTIONS = 2
"""Maximum number of restarts of a trial that lost its workers; after one more loss it ends as INTERRUPTED."""

KILLS_THAT_COUNT = 2
"""Kernel kills for memory after which a trial is INFEASIBLE; fewer may be the fault of another process on the node."""

_OUTCOMES = {
    "completed": Outcome.COMPLETED,
    "stopped": Outcome.STOPPED,
    "infeasible": Outcome.INFEASIBLE,
    "diverged": Outcome.DIVERGED,
}


class LaneTrainable(tune.Trainable):
    """One lane as a Trainable; `reuse_actors=True` keeps it warm between trials.

    The config holds `number` (of the trial), `assignment` and `lane` (the LaneSpec, the same for all trials).
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Start the lane and its first trial."""
        spec: LaneSpec = config["lane"]
        self._lane = Lane(spec, name=f"lane-{self.trial_id}")
        self._begin(config["assignment"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Give the warm lane its next trial."""
        self._begin(new_config["assignment"])
        return True

    def step(self) -> dict[str, Any]:
        """The next report of the trial, or its end."""
        while True:
            try:
                message = self._lane.next_message()
            except WorkersLostError as lost:
                self._interruptions += 1
                self._kills += isinstance(lost, WorkerKilledForMemoryError)
                if self._kills >= KILLS_THAT_COUNT:
                    return self._end(Outcome.INFEASIBLE, f"killed for host memory {self._kills} times; last: {lost}")
                if self._interruptions > MAX_INTERRUPTIONS:
                    return self._end(Outcome.INTERRUPTED, f"workers lost {self._interruptions} times; last: {lost}")
                self._lane.begin(self._assignment)
                continue
            except TrialOutOfMemoryError as out_of_memory:
                return self._end(Outcome.INFEASIBLE, str(out_of_memory))
            except LaneMachineError as machine:
                return self._end(Outcome.INTERRUPTED, str(machine.fault)) | {"machine_fault": machine.fault}
            except TrialFailedError as failure:
                return self._end(Outcome.FAILED, str(failure))
            match message:
                case EndMessage(end=end) if end.outcome == "paused":
                    return self._pause(end)
                case EndMessage(end=end):
                    return self._end(_OUTCOMES[end.outcome], end.reason, end)
                case SpeedsMessage(speeds=speeds):
                    return {"speeds": speeds, "done": False}
                case ReportMessage(report=report):
                    # Nested for the ledger, and flat for the scheduler, which reads tokens and loss.
                    return {"report": report, "done": False} | report

    def cleanup(self) -> None:
        """End the lane's workers."""
        self._lane.close()

    def _begin(self, assignment: Assignment) -> None:
        self._assignment, self._interruptions, self._kills = assignment, 0, 0
        self._lane.begin(assignment)

    def _pause(self, end: RunEnd) -> dict[str, Any]:
        assert self._assignment.pause is not None, "a leg without a pause has paused"
        return {
            "done": True,
            "paused_at": self._assignment.pause.at_tokens,
            "end": end,
            "interruptions": self._interruptions,
        }

    def _end(self, outcome: Outcome, reason: str, end: RunEnd | None = None) -> dict[str, Any]:
        return {
            "done": True,
            "outcome": str(outcome),
            "reason": reason,
            "end": end,
            "interruptions": self._interruptions,
        }
