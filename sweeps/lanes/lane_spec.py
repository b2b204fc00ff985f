"""What a lane is started with. Importable without Ray, so that a plan is made without it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LaneSpec:
    """Workers, resources and environment of every lane of a sweep."""

    workers: int
    use_gpu: bool
    threads_per_worker: int
    cpus_per_worker: float
    gpus_per_worker: float
    """0 without GPUs; below 1 where lanes share one, each with its part of the memory."""
    storage_folder: str
    """Where Ray Train writes its own state; nothing there is read back."""
    environment: dict[str, str]
    """Variables that the workers start with."""
    worker_deadline_s: float
    """A worker that does not answer the others for so long counts as lost."""
