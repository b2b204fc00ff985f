"""The channel between a lane's driver and its workers: trials in one direction, messages in the other."""

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import ray

from core.memory.memory_reports import LimitBy, MicroBatchSpeed
from core.memory.out_of_memory import OomFacts
from core.settings.cooldown_branch import Pause
from core.training.run_end import RunEnd
from data_pipeline.files.machine_faults import MachineFault


@dataclass(frozen=True)
class StageAssignment:
    """One stage of a trial."""

    run: dict[str, Any]
    """RunConfig as plain values."""
    prepared_folder: str
    corpus_server: Any


@dataclass(frozen=True)
class Assignment:
    """One trial, as sent to the workers of a lane."""

    number: int
    run: dict[str, Any]
    """RunConfig as plain values."""
    prepared_folder: str
    trial_folder: str
    """Folder of checkpoints and log; the run resumes from its newest complete checkpoint."""
    evaluate_at_tokens: tuple[int, ...]
    pause: Pause | None
    """Rung at which this leg of the trial ends. None: the leg runs to the end."""
    memory_limit_bytes: int | None
    memory_limit_by: LimitBy
    sizes_to_measure: tuple[int, ...] = ()
    """Micro-batch sizes to measure first. A run with `micro_batch_size: auto` takes the fastest of them."""
    checkpoint_every_s: float = 60.0
    mirror_uri: str | None = None
    """URI to which workers on other nodes than the driver's upload checkpoints."""
    driver_node: str = ""
    """Ray's id of the driver's node."""
    corpus_server: Any = None
    """From `serve_copies`, for workers on a node without the prepared corpus. None: all nodes see it."""
    stages: tuple[StageAssignment, ...] = ()
    """Stages to train one after another, instead of `run` on `prepared_folder`; empty without stages."""
    tasks: Any = None
    """Reference to the rows of the downstream tasks (TaskRows), in Ray's store of objects. None: there are none."""
    judge_at_tokens: tuple[int, ...] = ()
    """Some of `evaluate_at_tokens`: the tasks are tried there too, because the trial may end there."""
    trunk_folder: str | None = None
    """Folder of the trial whose checkpoint before the cooldown this trial resumes from; rank 0 reads it."""
    code: dict[str, Any] | None = None
    """Source of the user's class, as `ClassCode.as_json` gives it. None: a model of ours. It comes with the trial, so
    workers on other nodes need no copy of the user's folder."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """Return the object itself: it is immutable, and Tune copies its arguments several times per trial."""
        return self


@dataclass(frozen=True)
class Standing:
    """State of a worker when it takes a trial, kept for the case that it is killed later."""

    node: str
    """Ray's id of the worker's node."""
    kernel_kills: int
    """Number of processes that the node's kernel has killed for memory so far."""


@dataclass(frozen=True)
class ReportMessage:
    """A report of a trial's training."""

    trial: int
    report: dict[str, float]


@dataclass(frozen=True)
class SpeedsMessage:
    """Measured speeds of the requested micro-batch sizes."""

    trial: int
    speeds: tuple[MicroBatchSpeed, ...]


@dataclass(frozen=True)
class EndMessage:
    """The end of a trial or of a leg of it."""

    trial: int
    end: RunEnd
    is_last: bool
    """True: the workers end with this trial, because it left tensors in their memory."""


@dataclass(frozen=True)
class ErrorMessage:
    """An error ended the worker, and the trial with it."""

    trial: int
    traceback: str
    oom: OomFacts | None
    """Facts that the worker itself found about running out of memory. None: the error has another cause."""
    fault: MachineFault | None = None
    """Fault of the worker's machine behind the error. None: the error has another cause."""


Message = ReportMessage | SpeedsMessage | EndMessage | ErrorMessage
"""From a worker to the lane's driver. Messages cross processes, so they must pickle."""


class MailboxActor:
    """Stores trials until every worker has taken them, and messages until the driver has read them."""

    def __init__(self) -> None:
        self._trials: list[Assignment | None] = []
        self._changed = asyncio.Condition()
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._stops: list[int | None] = []
        self._stopped: set[int] = set()
        self._standings: dict[int, Standing] = {}
        self._answered = 0
        self._reported = 0

    async def post(self, assignment: Assignment | None) -> None:
        """Post the next trial for the workers. None: no more trials follow."""
        async with self._changed:
            self._trials.append(assignment)
            if assignment is None:
                self._stops.append(None)
            else:
                self._stopped.discard(assignment.number)
            self._changed.notify_all()

    async def take(self, index: int) -> Assignment | None:
        """Wait for the trial at this position in the order of posting."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._trials) > index)
        return self._trials[index]

    async def stand(self, rank: int, standing: Standing) -> None:
        """Store the state of a worker."""
        self._standings[rank] = standing

    async def standings(self) -> dict[int, Standing]:
        """State of each worker when it took its last trial, by rank."""
        return self._standings

    async def tell(self, message: Message, wait: bool) -> bool:
        """Send a message to the driver. Returns whether the trial continues.

        Args:
            wait: Wait for the driver's decision, so that a trial never trains past the rung that ends it.
        """
        self._reported += 1
        mine = self._reported
        await self._messages.put(message)
        if wait:
            async with self._changed:
                await self._changed.wait_for(lambda: self._answered >= mine or message.trial in self._stopped)
        return message.trial not in self._stopped

    async def next_message(self) -> Message:
        """The next message. The call also releases the trials of all earlier messages."""
        async with self._changed:
            self._answered = self._reported - self._messages.qsize()
            self._changed.notify_all()
        return await self._messages.get()

    async def stop(self, trial: int) -> None:
        """Order the workers to end this trial at the next micro-batch."""
        async with self._changed:
            self._stopped.add(trial)
            self._stops.append(len(self._trials) - 1)
            self._changed.notify_all()

    async def next_stop(self, index: int) -> int | None:
        """Wait for the stop order at this position.

        Returns:
            Position of the trial in the order of posting, because the same trial may be posted again. None: no more
            stop orders follow.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._stops) > index)
        return self._stops[index]


# An async actor, because the calls of the driver and of all workers wait at the same time.
Mailbox = ray.remote(num_cpus=0)(MailboxActor)
