"""Messages between a lane's driver and its workers: trials one way, reports the other."""

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import ray

from core.memory.memory_reports import LimitBy, MicroBatchSpeed
from core.memory.out_of_memory import OomFacts
from core.settings.cooldown_branch import Pause
from core.training.run_end import RunEnd


@dataclass(frozen=True)
class StageAssignment:
    """One stage of a trial."""

    run: dict[str, Any]
    """RunConfig as plain values."""
    prepared_folder: str
    corpus_server: Any


@dataclass(frozen=True)
class Assignment:
    """One trial, as a lane's workers get it."""

    number: int
    run: dict[str, Any]
    """RunConfig as plain values."""
    prepared_folder: str
    trial_folder: str
    """Checkpoints and the log; the run resumes from the newest whole checkpoint there."""
    evaluate_at_tokens: tuple[int, ...]
    pause: Pause | None
    """Rung at which this leg of the trial ends; None: it goes to the end."""
    memory_limit_bytes: int | None
    memory_limit_by: LimitBy
    sizes_to_measure: tuple[int, ...] = ()
    """Micro-batches whose speed is not known yet. A run with `micro_batch_size: auto` takes the fastest of them."""
    checkpoint_every_s: float = 60.0
    mirror_uri: str | None = None
    """Where checkpoints are kept as well by workers on another node than the driver's."""
    driver_node: str = ""
    """Ray's id of the driver's node."""
    corpus_server: Any = None
    """From `serve_copies`, for workers on a node without the prepared folder; None where all nodes see it."""
    stages: tuple[StageAssignment, ...] = ()
    """Trained one after another, where there are any, instead of `run` on `prepared_folder`."""
    trunk_folder: str | None = None
    """Of the trial from whose checkpoint before the cooldown this one continues; rank 0 reads it."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """Itself: nobody changes it, and Tune copies what it is given several times a trial."""
        return self


@dataclass(frozen=True)
class Standing:
    """Where a worker is as it takes a trial; a worker that was killed cannot report it any more."""

    node: str
    """Ray's id of it."""
    kernel_kills: int
    """Processes that the kernel there has killed for memory so far."""


@dataclass(frozen=True)
class ReportMessage:
    """A report of a trial's training."""

    trial: int
    report: dict[str, float]


@dataclass(frozen=True)
class SpeedsMessage:
    """Speeds of the micro-batches that a trial was asked to measure."""

    trial: int
    speeds: tuple[MicroBatchSpeed, ...]


@dataclass(frozen=True)
class EndMessage:
    """A trial, or a leg of it, ended as its run says."""

    trial: int
    end: RunEnd
    is_last: bool
    """The workers end with this trial, which has left something in their memory."""


@dataclass(frozen=True)
class ErrorMessage:
    """An error ended the worker, and the trial with it."""

    trial: int
    traceback: str
    oom: OomFacts | None
    """Facts about the memory that ran out, from the worker, which is nearest to them. None: the error has another
    cause."""


Message = ReportMessage | SpeedsMessage | EndMessage | ErrorMessage
"""From a worker to the lane's driver. Messages cross processes, so they must pickle."""


class MailboxActor:
    """Keeps trials until every worker has taken them, and messages until the driver has read them."""

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
        """Give the next trial to the workers; None: no more will come."""
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
        """A worker says where it is."""
        self._standings[rank] = standing

    async def standings(self) -> dict[int, Standing]:
        """Where each worker was when it took its last trial, by rank."""
        return self._standings

    async def tell(self, message: Message, wait: bool) -> bool:
        """Hand a message to the driver. Returns whether the trial is to continue.

        Args:
            wait: Wait until the driver has decided on it, so that a trial never trains past the rung that ends it.
        """
        self._reported += 1
        mine = self._reported
        await self._messages.put(message)
        if wait:
            async with self._changed:
                await self._changed.wait_for(lambda: self._answered >= mine or message.trial in self._stopped)
        return message.trial not in self._stopped

    async def next_message(self) -> Message:
        """The next message; asking for it says that the trials of those before it may continue."""
        async with self._changed:
            self._answered = self._reported - self._messages.qsize()
            self._changed.notify_all()
        return await self._messages.get()

    async def stop(self, trial: int) -> None:
        """Tell the workers to end this trial at the next micro-batch."""
        async with self._changed:
            self._stopped.add(trial)
            self._stops.append(len(self._trials) - 1)
            self._changed.notify_all()

    async def next_stop(self, index: int) -> int | None:
        """Wait for the stop at this position in their order.

        Returns:
            Position of the trial in the order of posting: the same trial may come again. None: no more will come.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._stops) > index)
        return self._stops[index]


# An actor of coroutines: the waiting calls of every worker and of the driver stand open side by side.
Mailbox = ray.remote(num_cpus=0)(MailboxActor)
