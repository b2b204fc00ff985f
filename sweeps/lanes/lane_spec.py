"""Specification of a lane. Importable without Ray, so that planning needs no Ray."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LaneSpec:
    """Workers, resources and environment of every lane of a sweep."""

    workers: int
    use_gpu: bool
    threads_per_worker: int
    cpus_per_worker: float
    gpus_per_worker: float
    """0 without GPUs; below 1 if lanes share a GPU, each with its part of the memory."""
    storage_folder: str
    """Folder for the state of Ray Train; pretune never reads it."""
    environment: dict[str, str]
    """Environment variables of the workers."""
    worker_deadline_s: float
    """Seconds of silence after which a worker counts as lost."""
