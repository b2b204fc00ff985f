"""Plans the lanes of a cluster: their number, and the CPUs, GPUs and memory of their workers."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.memory.device_facts import smallest_of
from core.memory.host_memory import CUDA_CONTEXT_BYTES, NCCL_BYTES, host_memory_share
from core.memory.memory_reports import LimitBy
from data_pipeline.schema.user_errors import InputFault
from sweeps.lanes.lane_spec import LaneSpec
from sweeps.settings.sweep_sections import ResourcesConfig

_RESOURCE_STEPS = 10_000
"""Ray counts resources in units of 1/10,000. Shares are rounded down, because a third rounded up fits only twice."""
_ROUNDING = 1e-6


class ResourcesError(InputFault):
    """The cluster has too few resources for the sweep file."""


@dataclass(frozen=True)
class LanePlan:
    """Number of lanes, and the resources of each."""

    count: int
    workers: int
    use_gpu: bool
    threads_per_worker: int
    worker_deadline_s: float
    """Seconds of silence after which a worker counts as lost."""
    reason: str
    """Explanation of the choice."""
    cpus_per_worker: float
    """CPUs reserved for each worker, so that no two workers compute on the same one."""
    gpus_per_worker: float
    """1, or the share of a GPU if lanes share it."""
    most: int
    """Maximum number of useful lanes, however large the cluster becomes."""

    def held_by(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """Number of lanes that these nodes hold.

        Args:
            nodes: CPUs (`CPU`) and GPUs (`GPU`) of each node.
        """
        workers = 0
        for node in nodes:
            slots = math.floor(node.get("CPU", 0.0) / self.cpus_per_worker + _ROUNDING)
            if self.use_gpu:
                slots = min(slots, math.floor(node.get("GPU", 0.0) / self.gpus_per_worker + _ROUNDING))
            workers += slots
        return min(self.most, workers // self.workers)

    def spec(self, storage_folder: Path, *, memory_limit_by: LimitBy = "counting") -> LaneSpec:
        """The specification with which each lane starts."""
        return LaneSpec(
            workers=self.workers,
            use_gpu=self.use_gpu,
            threads_per_worker=self.threads_per_worker,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker if self.use_gpu else 0.0,
            storage_folder=str(storage_folder),
            # Return freed memory to the kernel; rlimit would still count it otherwise.
            environment={"MALLOC_MMAP_THRESHOLD_": "65536"} if memory_limit_by == "rlimit" else {},
            worker_deadline_s=self.worker_deadline_s,
        )


@dataclass(frozen=True)
class AutoLanes:
    """Division of one machine's CPUs, or of one GPU, among workers, for `concurrent_trials: auto`."""

    processes: int
    """Concurrent workers on the machine, or on one GPU."""
    threads: int
    """CPU threads of each worker."""
    reason: str
    """Explanation of the choice; empty without alternatives."""


def plan_lanes(
    resources: ResourcesConfig,
    *,
    num_trials: int,
    num_cpus: int,
    num_gpus: int,
    nodes: Sequence[Mapping[str, float]] = (),
    auto: AutoLanes | None = None,
) -> LanePlan:
    """Number of lanes and their resources.

    A worker gets a GPU of its own, or one or more CPU cores. Lanes never share a core, so they do not slow each other
    down. If the file or `auto` sets more lanes than GPUs, lanes share the GPUs, equally many on each, with its part
    of the memory each.

    Args:
        auto: Division for `concurrent_trials: auto`. None: one lane per core or GPU.
        nodes: Cores (`CPU`) and GPUs (`GPU`) of each node. Empty: a single node has all of them.

    Raises:
        ResourcesError: Not even one trial fits.
    """
    use_gpu = resources.uses_gpus(num_gpus)
    workers = resources.workers_per_trial
    slots, unit = (num_gpus, "GPU") if use_gpu else (num_cpus, "core")
    if use_gpu and slots < workers:
        raise ResourcesError(
            f"resources.workers_per_trial={workers} needs as many GPUs; the cluster has {num_gpus}. "
            "Lower workers_per_trial, or set resources.device: cpu."
        )
    fitting = max(1, slots // workers)
    asked = resources.concurrent_trials
    most = num_trials if asked == "auto" else min(asked, num_trials)
    count = min(_held_by_auto(auto, nodes, use_gpu=use_gpu, slots=slots, workers=workers), most)
    if asked != "auto":
        count = most
    lanes_per_gpu = 1
    if use_gpu and count > fitting:
        if workers > 1:
            raise ResourcesError(
                f"resources.concurrent_trials={asked} with {workers} GPUs a trial needs {count * workers} GPUs; "
                f"the cluster has {num_gpus}, and workers of one trial cannot share one. "
                f"Use concurrent_trials: {fitting}, or auto."
            )
        # Ray fills one card before the next, so a number of lanes between two multiples would leave cards idle.
        lanes_per_gpu = count // num_gpus
        count = lanes_per_gpu * num_gpus
    # Cores and maximum workers of each node that can have workers.
    rooms = [
        (int(node.get("CPU", 0)), int(node.get("GPU", 0)) * lanes_per_gpu if use_gpu else count * workers)
        for node in nodes or [{"CPU": num_cpus, "GPU": num_gpus}]
    ]
    rooms = [(cpus, most_workers) for cpus, most_workers in rooms if most_workers]
    threads = _threads(rooms, num_workers=count * workers)
    # A fraction, so that lanes also fit a cluster with fewer CPUs than workers.
    share = _in_steps(sum(cpus for cpus, _ in rooms) / (count * workers))
    words = f"{count} at a time on {slots} {unit}{'s' if slots != 1 else ''}"
    if lanes_per_gpu > 1:
        words += f", {lanes_per_gpu} to a GPU"
    if use_gpu and asked != "auto" and count < most:
        words += f" ({most} asked; lanes come in whole multiples of GPUs)"
    details = f"{workers} worker{'s' if workers > 1 else ''} a trial, {threads} thread{'s' if threads > 1 else ''} each"
    return LanePlan(
        count,
        workers,
        use_gpu,
        threads,
        resources.worker_deadline_s,
        f"{words}, {details}" + (f" ({auto.reason})" if auto is not None and auto.reason else ""),
        cpus_per_worker=float(threads) if threads <= share else share,
        gpus_per_worker=_in_steps(1 / lanes_per_gpu),
        most=most,
    )


def _held_by_auto(
    auto: AutoLanes | None, nodes: Sequence[Mapping[str, float]], *, use_gpu: bool, slots: int, workers: int
) -> int:
    """Number of lanes in the cluster if each machine, or GPU, is divided as `auto` says; at least 1."""
    if auto is None:
        return max(1, slots // workers)
    if use_gpu:
        return max(1, slots * auto.processes // workers)
    cores = [int(node.get("CPU", 0)) for node in nodes] or [slots]
    return max(1, sum(count // auto.threads for count in cores) // workers)


def _in_steps(share: float) -> float:
    return max(1, math.floor(share * _RESOURCE_STEPS)) / _RESOURCE_STEPS


def _threads(rooms: Sequence[tuple[int, int]], *, num_workers: int) -> int:
    """Maximum threads per worker such that every worker fits on one node; at least 1."""
    largest = max((cpus for cpus, _ in rooms), default=1)
    return next(
        (n for n in range(largest, 0, -1) if sum(min(cpus // n, most) for cpus, most in rooms) >= num_workers),
        1,
    )


def this_machine() -> dict[str, Any]:
    """CPUs and GPUs of this machine, as arguments of `plan_lanes`."""
    return {"num_cpus": os.cpu_count() or 1, "num_gpus": torch.cuda.device_count()}


def device_kind(lanes: LanePlan) -> str:
    """Kind of device for which memory observations are valid: name and memory of a GPU, or `cpu`."""
    if not lanes.use_gpu:
        return "cpu"
    from sweeps.lanes.cards import cards_now

    smallest = smallest_of(cards_now())
    return "gpu" if smallest is None else f"{smallest.name} {smallest.total_bytes / 2**30:.0f} GiB"


def worker_memory_bytes(resources: ResourcesConfig, lanes: LanePlan, *, device_bytes: int | None = None) -> int:
    """Memory that one worker may use for training, in bytes.

    Args:
        device_bytes: Memory of one GPU that is free beside one context, if trials run on GPUs.
    """
    if lanes.use_gpu and device_bytes:
        lanes_per_gpu = round(1 / lanes.gpus_per_worker)
        in_use = (lanes_per_gpu - 1) * CUDA_CONTEXT_BYTES + (NCCL_BYTES if lanes.workers > 1 else 0)
        whole = max(1, (device_bytes - in_use) // lanes_per_gpu)
    else:
        whole = host_memory_share(num_processes=lanes.count * lanes.workers)
    return resources.memory_bytes(whole)
