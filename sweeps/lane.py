"""A lane: one warm TorchTrainer worker group that trains one trial after another.

Starting a worker group costs as much as training a small model, so it is started once. A lane outlives its workers:
when they are lost, the next trial (or the same one again, from its checkpoint) gets a new group.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from sweeps.lane_worker import train_assignments
from sweeps.mailbox import Assignment, Mailbox, Message

_POLL_S = 0.5
_GROUP_END_S = 60.0
"""How long a worker group may take to end after one of its workers failed; Train looks every 2 s."""
_STOP_S = 60.0
"""How long a trial may take to end after it was told to: one optimizer step, or one evaluation."""


@dataclass(frozen=True)
class LaneSpec:
    """What every lane of a sweep is made of."""

    workers: int
    use_gpu: bool
    threads_per_worker: int
    cpus_per_worker: float
    storage_folder: str
    """Where Ray Train writes its own state; nothing there is read back."""


class WorkersLostError(RuntimeError):
    """A worker of the lane vanished; says nothing about the trial's settings."""


class TrialFailedError(RuntimeError):
    """A worker raised an error that is not understood; the message is its traceback."""


class Lane:
    """One worker group and the trial that it trains."""

    def __init__(self, spec: LaneSpec, name: str) -> None:
        self._spec, self._name = spec, name
        self._mailbox: Any = None
        self._group: threading.Thread | None = None
        self._group_error: BaseException | None = None
        self._current: Assignment | None = None

    def begin(self, assignment: Assignment) -> None:
        """Start a trial; one that still runs is stopped first."""
        self.stop_current()
        if self._group is None or not self._group.is_alive():
            self._start_group()
        self._current = assignment
        ray.get(self._mailbox.post.remote(assignment))

    def next_message(self) -> Message:
        """The next report of the current trial, or its end. Asking again means: go on.

        Raises:
            WorkersLostError: A worker vanished (killed, node lost).
            TrialFailedError: A worker raised an error that is not understood.
        """
        pending = self._mailbox.next_message.remote()
        while True:
            ready, _ = ray.wait([pending], timeout=_POLL_S)
            if ready:
                message: Message = ray.get(pending)
                break
            if self._group is None or not self._group.is_alive():
                raise self._explain("")
        if message.kind == "error":
            raise self._explain(message.error)
        if message.kind == "end":
            self._current = None
        return message

    def stop_current(self) -> None:
        """End the current trial, if any, and wait until the workers are free."""
        if self._current is None:
            return
        ray.get(self._mailbox.stop.remote(self._current.number))
        try:
            while self.next_message().kind != "end":
                pass
        except (WorkersLostError, TrialFailedError):
            # The trial's outcome is settled already; the next one gets a new group.
            return

    def close(self) -> None:
        """Let the workers go."""
        self.stop_current()
        if self._group is not None and self._group.is_alive():
            ray.get(self._mailbox.post.remote(None))
            self._group.join(_STOP_S)

    def _start_group(self) -> None:
        # A new mailbox as well: the old one may still hold messages of workers that are gone.
        self._mailbox = Mailbox.remote()
        self._group_error = None
        spec = self._spec
        trainer = TorchTrainer(
            train_assignments,
            train_loop_config={"mailbox": self._mailbox, "threads": spec.threads_per_worker},
            scaling_config=ray.train.ScalingConfig(
                num_workers=spec.workers,
                use_gpu=spec.use_gpu,
                resources_per_worker={"CPU": spec.cpus_per_worker} | ({"GPU": 1} if spec.use_gpu else {}),
            ),
            # No retries by Train: it would start over with the same trial list and the same fault.
            run_config=ray.train.RunConfig(
                name=f"{self._name}-{id(self._mailbox):x}",
                storage_path=str(Path(spec.storage_folder).absolute()),
                failure_config=ray.train.FailureConfig(max_failures=0),
            ),
        )
        self._group = threading.Thread(target=self._run_group, args=(trainer,), daemon=True, name=self._name)
        self._group.start()

    def _run_group(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # Kept for the thread that waits for messages, which explains it.
            self._group_error = error

    def _explain(self, traceback_text: str) -> Exception:
        """Why the group ended. When one worker is killed the others fail too: the vanished one is the cause."""
        self._current = None
        assert self._group is not None
        self._group.join(_GROUP_END_S)
        failures = self._group_error.worker_failures if isinstance(self._group_error, WorkerGroupError) else {}
        lost = {rank: error for rank, error in failures.items() if _is_loss(error)}
        if lost or not traceback_text:
            who = ", ".join(f"rank {rank}: {type(error).__name__}" for rank, error in lost.items())
            return WorkersLostError(who or f"the worker group ended: {self._group_error!r}")
        return TrialFailedError(traceback_text)


def _is_loss(error: BaseException) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError", "RayActorError"})
