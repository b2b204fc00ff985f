"""How many lanes the processors and GPUs of a cluster hold."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.memory.host_memory import CUDA_CONTEXT_BYTES, host_memory_share
from core.memory.memory_reports import LimitBy
from data_pipeline.schema.user_errors import InputFault
from sweeps.lanes.lane_spec import LaneSpec
from sweeps.settings.sweep_sections import ResourcesConfig

_RESOURCE_STEPS = 10_000
"""Ray counts resources in such parts of one; a third rounded up would not fit three times."""
_ROUNDING = 1e-6


class ResourcesError(InputFault):
    """The cluster cannot hold what the sweep file asks for."""


@dataclass(frozen=True)
class LanePlan:
    """How many lanes run side by side, and what each is made of."""

    count: int
    workers: int
    use_gpu: bool
    threads_per_worker: int
    worker_deadline_s: float
    """Seconds of silence after which a worker counts as lost."""
    reason: str
    """The choice in words."""
    cpus_per_worker: float
    """Processors that a worker has for itself, so that no two of them compute on one."""
    gpus_per_worker: float
    """1, or the share of a GPU that small models have each."""
    most: int
    """Lanes that are of use, however large the cluster becomes."""

    def held_by(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """Lanes that nodes with such resources hold.

        Args:
            nodes: Of each node its processors (`CPU`) and GPUs (`GPU`).
        """
        workers = 0
        for node in nodes:
            slots = math.floor(node.get("CPU", 0.0) / self.cpus_per_worker + _ROUNDING)
            if self.use_gpu:
                slots = min(slots, math.floor(node.get("GPU", 0.0) / self.gpus_per_worker + _ROUNDING))
            workers += slots
        return min(self.most, workers // self.workers)

    def spec(self, storage_folder: Path, *, memory_limit_by: LimitBy = "counting") -> LaneSpec:
        """What a lane needs to know to start."""
        return LaneSpec(
            workers=self.workers,
            use_gpu=self.use_gpu,
            threads_per_worker=self.threads_per_worker,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker if self.use_gpu else 0.0,
            storage_folder=str(storage_folder),
            # What is freed goes back to the kernel, or it would continue to count.
            environment={"MALLOC_MMAP_THRESHOLD_": "65536"} if memory_limit_by == "rlimit" else {},
            worker_deadline_s=self.worker_deadline_s,
        )


@dataclass(frozen=True)
class AutoLanes:
    """How the workers of lanes divide one machine's processors, or one of its GPUs, where the file leaves it open."""

    processes: int
    """Workers side by side: on the machine, or on a GPU."""
    threads: int
    """Of each, on processors."""
    reason: str
    """Why, in words; empty where there is nothing to choose."""


def plan_lanes(
    resources: ResourcesConfig,
    *,
    num_trials: int,
    num_cpus: int,
    num_gpus: int,
    nodes: Sequence[Mapping[str, float]] = (),
    auto: AutoLanes | None = None,
) -> LanePlan:
    """How many trials run side by side.

    A worker gets a GPU of its own, or one or more processor cores; lanes never share a core, so that they do not slow
    each other down. More lanes than GPUs, which a file may ask for or `auto` find out, share them, each with its part
    of the memory.

    Args:
        auto: Used where the file says `concurrent_trials: auto`. None: a lane for every core or GPU.
        nodes: Of each node its cores (`CPU`) and GPUs (`GPU`). Empty: all are on one.

    Raises:
        ResourcesError: Not even one trial fits.
    """
    use_gpu = resources.device == "gpu" or (resources.device == "auto" and num_gpus > 0)
    workers = resources.workers_per_trial
    slots, unit = (num_gpus, "GPU") if use_gpu else (num_cpus, "core")
    if use_gpu and slots < workers:
        raise ResourcesError(
            f"resources.workers_per_trial={workers} needs as many GPUs; the cluster has {num_gpus}. "
            "Lower workers_per_trial, or say resources.device: cpu."
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
        lanes_per_gpu = -(-count // num_gpus)
    # Cores, and workers that they may have, of each node that can have some.
    rooms = [
        (int(node.get("CPU", 0)), int(node.get("GPU", 0)) * lanes_per_gpu if use_gpu else count * workers)
        for node in nodes or [{"CPU": num_cpus, "GPU": num_gpus}]
    ]
    rooms = [(cpus, most_workers) for cpus, most_workers in rooms if most_workers]
    threads = _threads(rooms, num_workers=count * workers)
    # A fraction, so that lanes also fit a cluster with fewer processors than workers.
    share = _in_steps(sum(cpus for cpus, _ in rooms) / (count * workers))
    words = f"{count} at a time on {slots} {unit}{'s' if slots != 1 else ''}"
    if lanes_per_gpu > 1:
        words += f", {lanes_per_gpu} to a GPU"
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
    """Lanes that the cluster holds where each machine, or GPU, is divided as was found best for one; 1 at least."""
    if auto is None:
        return max(1, slots // workers)
    if use_gpu:
        return max(1, slots * auto.processes // workers)
    cores = [int(node.get("CPU", 0)) for node in nodes] or [slots]
    return max(1, sum(count // auto.threads for count in cores) // workers)


def _in_steps(share: float) -> float:
    return max(1, math.floor(share * _RESOURCE_STEPS)) / _RESOURCE_STEPS


def _threads(rooms: Sequence[tuple[int, int]], *, num_workers: int) -> int:
    """The most threads that each worker can have where none is spread over two nodes; 1 at least."""
    largest = max((cpus for cpus, _ in rooms), default=1)
    return next(
        (n for n in range(largest, 0, -1) if sum(min(cpus // n, most) for cpus, most in rooms) >= num_workers),
        1,
    )


def this_machine() -> dict[str, Any]:
    """What `plan_lanes` is told of this machine alone."""
    return {"num_cpus": os.cpu_count() or 1, "num_gpus": torch.cuda.device_count()}


def device_kind(lanes: LanePlan) -> str:
    """What was learnt about memory holds for devices of this kind: a GPU's name and memory, or `cpu`."""
    if not lanes.use_gpu:
        return "cpu"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return f"{device.name} {device.total_memory / 2**30:.0f} GiB"
    import ray

    # The driver's own node has no GPU: Ray knows what the others have, by name alone.
    names = sorted(name for name in ray.cluster_resources() if name.startswith("accelerator_type:"))  # type: ignore[no-untyped-call]
    return " ".join(name.removeprefix("accelerator_type:") for name in names) or "gpu"


def worker_memory_bytes(resources: ResourcesConfig, lanes: LanePlan, *, device_bytes: int | None = None) -> int:
    """Memory that one worker may use for training, in bytes.

    Args:
        device_bytes: Memory of one GPU, when trials run on GPUs.
    """
    if lanes.use_gpu and device_bytes:
        lanes_per_gpu = round(1 / lanes.gpus_per_worker)
        whole = max(1, (device_bytes - (lanes_per_gpu - 1) * CUDA_CONTEXT_BYTES) // lanes_per_gpu)
    else:
        whole = host_memory_share(num_processes=lanes.count * lanes.workers)
    return resources.memory_bytes(whole)
