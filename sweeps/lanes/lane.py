"""A lane: one warm TorchTrainer worker group that trains one trial after another.

Starting a worker group costs as much as training a small model, so a lane starts it once. A lane outlives its workers:
after a loss, the next trial (or the same one, from its checkpoint) gets a new group.
"""

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.distributed.workers import WorkerSilentError
from core.memory.host_memory import kernel_oom_kills
from core.memory.out_of_memory import OomFacts, classify, corroborated
from data_pipeline.files.machine_faults import MachineFault, machine_fault
from sweeps.lanes.lane_spec import LaneSpec
from sweeps.lanes.lane_worker import train_assignments
from sweeps.lanes.mailbox import Assignment, EndMessage, ErrorMessage, Mailbox, Message, ReportMessage, SpeedsMessage

_POLL_S = 0.5
_GROUP_END_S = 60.0
"""Maximum seconds until a worker group ends after one of its workers failed; Train checks every 2 s."""
_STOP_S = 60.0
"""Maximum seconds until a trial ends after the order to stop: one optimizer step, or one evaluation."""


class WorkersLostError(RuntimeError):
    """A worker of the lane vanished or no longer answers; the trial's settings are not to blame."""


class WorkerKilledForMemoryError(WorkersLostError):
    """A worker vanished, and its node's kernel killed a process for memory: the trial's, or another one's."""


class TrialOutOfMemoryError(RuntimeError):
    """A worker ran out of memory, and its run could not continue with less."""


class TrialFailedError(RuntimeError):
    """A worker raised an unexpected error; the message is its traceback."""


class LaneMachineError(RuntimeError):
    """A worker met a fault of its machine, which every other trial would meet, too."""

    def __init__(self, fault: MachineFault) -> None:
        super().__init__(fault)
        self.fault = fault


class Lane:
    """A lane with its worker group and its current trial."""

    def __init__(self, spec: LaneSpec, name: str) -> None:
        self._spec, self._name = spec, name
        self._mailbox: Any = None
        self._group: threading.Thread | None = None
        self._group_error: BaseException | None = None
        self._current: Assignment | None = None

    def begin(self, assignment: Assignment) -> None:
        """Start a trial; a running one is stopped first."""
        self.stop_current()
        if self._group is None or not self._group.is_alive():
            self._start_group()
        self._current = assignment
        ray.get(self._mailbox.post.remote(assignment))

    def next_message(self) -> ReportMessage | SpeedsMessage | EndMessage:
        """The next report of the current trial, or its end. The next call lets the trial continue.

        Raises:
            WorkersLostError: A worker vanished (killed, node lost) or does not answer.
            TrialOutOfMemoryError: A worker ran out of memory, and the run could not continue with less.
            LaneMachineError: The disk of a worker is full, or another fault of its machine.
            TrialFailedError: A worker raised an unexpected error.
        """
        pending = self._mailbox.next_message.remote()
        while True:
            ready, _ = ray.wait([pending], timeout=_POLL_S)
            if ready:
                message: Message = ray.get(pending)
                break
            if self._group is None or not self._group.is_alive():
                raise self._explain(None)
        if isinstance(message, ErrorMessage):
            raise self._explain(message)
        if isinstance(message, EndMessage):
            self._current = None
            if message.is_last and self._group is not None:
                self._group.join(_GROUP_END_S)
                self._group = None
        return message

    def stop_current(self) -> None:
        """End the current trial, if any, and wait until the workers are free."""
        if self._current is None:
            return
        ray.get(self._mailbox.stop.remote(self._current.number))
        try:
            while not isinstance(self.next_message(), EndMessage):
                pass
        except (WorkersLostError, TrialOutOfMemoryError, LaneMachineError, TrialFailedError):
            # The trial has its outcome already; the next one gets a new group.
            return

    def close(self) -> None:
        """Stop the current trial and end the workers."""
        self.stop_current()
        if self._group is not None and self._group.is_alive():
            ray.get(self._mailbox.post.remote(None))
            self._group.join(_STOP_S)

    def _start_group(self) -> None:
        # A new mailbox too: the old one may contain messages of lost workers.
        self._mailbox = Mailbox.remote()
        self._group_error = None
        spec = self._spec
        trainer = TorchTrainer(
            train_assignments,
            torch_config=TorchConfig(
                # Workers agree on the host: there no agreement waits for a GPU.
                backend="cpu:gloo,cuda:nccl" if spec.use_gpu else None,
                timeout_s=math.ceil(spec.worker_deadline_s),
            ),
            train_loop_config={"mailbox": self._mailbox, "threads": spec.threads_per_worker},
            scaling_config=ray.train.ScalingConfig(
                num_workers=spec.workers,
                use_gpu=spec.use_gpu,
                resources_per_worker={"CPU": spec.cpus_per_worker}
                | ({"GPU": spec.gpus_per_worker} if spec.use_gpu else {}),
            ),
            # No retries by Train: it would repeat the same trials and the same failure.
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]
                name=f"{self._name}-{id(self._mailbox):x}",
                storage_path=str(Path(spec.storage_folder).absolute()),
                failure_config=ray.train.FailureConfig(max_failures=0),
                worker_runtime_env={"env_vars": spec.environment} if spec.environment else None,
            ),
        )
        self._group = threading.Thread(target=self._run_group, args=(trainer,), daemon=True, name=self._name)
        self._group.start()

    def _run_group(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # The thread that waits for messages reports it.
            self._group_error = error

    def _explain(self, told: ErrorMessage | None) -> Exception:
        """The reason why the group ended. A killed worker makes the others fail too; the vanished one is the cause."""
        self._current = None
        assert self._group is not None
        self._group.join(_GROUP_END_S)
        self._group = None  # The next trial gets a new group, even if this one still runs.
        failures = self._group_error.worker_failures if isinstance(self._group_error, WorkerGroupError) else {}
        # The worker's own facts take precedence: an error loses its causes between processes.
        facts = None if told is None else told.oom
        fault = None if told is None else told.fault
        if facts is None and fault is None and self._group_error is not None:
            fault = machine_fault(self._group_error, near=Path(self._spec.storage_folder))
        if fault is not None:
            return LaneMachineError(fault)
        if facts is None and self._group_error is not None:
            facts = classify(self._group_error)
        if facts is not None and not facts.is_certain:
            facts = corroborated(facts, new_kernel_kills=self._new_kernel_kills())
        lost = {rank: error for rank, error in failures.items() if _is_loss(error)}
        return _ending(facts, lost, "" if told is None else told.traceback) or WorkersLostError(
            f"the group ended: {self._group_error!r}"
        )

    def _new_kernel_kills(self) -> int:
        """Processes killed for memory by the kernels of the workers' nodes since the workers took their trial."""
        standings = ray.get(self._mailbox.standings.remote()).values()
        before = {standing.node: standing.kernel_kills for standing in standings}
        return sum(max(0, _kernel_kills_on(node, unknown=kills) - kills) for node, kills in before.items())


def prepare_for_lanes() -> None:
    """Start Ray Train's resource coordinator, and keep credentials out of the arguments of Tune's processes."""
    # Tune hands the driver's keys of Amazon to its processes as arguments, which `ps` and Ray's logs show to everyone.
    # A process on this machine inherits them; other nodes have their own, as for every other store.
    ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])
    # Otherwise the first worker group waits for its start.
    get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]


def _gpus(spec: LaneSpec) -> dict[str, float]:
    # Train refuses a GPU request when no GPU is used.
    return {"GPU": spec.gpus_per_worker} if spec.use_gpu else {}


def _ending(facts: OomFacts | None, lost: Mapping[int, BaseException], traceback_text: str) -> Exception | None:
    """The error for a trial whose worker group ended; None if the cause is unknown."""
    if facts is not None and facts.kind in ("device", "host"):
        where = "" if facts.phase is None else f" in {facts.phase}"
        return TrialOutOfMemoryError(f"out of memory{where} on rank {facts.rank}: {facts.message}")
    who = ", ".join(f"rank {rank}: {type(error).__name__}" for rank, error in lost.items())
    if facts is not None and facts.kind == "node" and facts.error_type.endswith(".OutOfMemoryError"):
        return WorkersLostError(f"the node ran low on memory, and Ray ended a worker ({who})")
    if facts is not None and facts.kind == "node":
        return WorkerKilledForMemoryError(f"the kernel of the worker's node killed a process for memory ({who})")
    if lost or facts is not None:
        return WorkersLostError(who or f"{facts}")
    if WorkerSilentError.__name__ in traceback_text:
        return WorkersLostError(traceback_text.strip().splitlines()[-1])
    return TrialFailedError(traceback_text) if traceback_text else None


def _kernel_kills_on(node: str, *, unknown: int) -> int:
    """Current number of kernel kills on a node; `unknown` if the node is gone."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    count = ray.remote(num_cpus=0, max_retries=0)(kernel_oom_kills).options(scheduling_strategy=there)
    try:
        return int(ray.get(count.remote(), timeout=_GROUP_END_S))
    except RayError:
        return unknown


def _is_loss(error: BaseException) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError", "RayActorError"})
