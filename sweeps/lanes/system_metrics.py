"""CPU, memory and GPU metrics of a trial's machine, under the names of MLflow's system metrics page."""

import time

import psutil
import torch

from core.training.observation import observed

_MB = 1e6


class SystemMetrics:
    """Reads system metrics. Shares are means since the last reading; unavailable values are left out."""

    def __init__(self) -> None:
        self._read_at, self._own_s = time.monotonic(), time.process_time()
        self._own = psutil.Process()
        # psutil keeps the ticks of the last reading, and this one begins the first stretch.
        psutil.cpu_percent()

    def read(self) -> dict[str, float]:
        """Percentages and megabytes, as MLflow's own system metrics; takes well under a millisecond on a CPU."""
        values: dict[str, float] = {}
        nothing: dict[str, float] = {}
        for name, probe in (
            ("processors", self._processors),
            ("memory", self._memory),
            ("GPU memory", _gpu_memory),
            ("GPU utilization", _gpu_utilization),
        ):
            values |= observed(name, probe, otherwise=nothing)
        return {f"system/{name}": value for name, value in values.items()}

    def _processors(self) -> dict[str, float]:
        now, own_s = time.monotonic(), time.process_time()
        values = {"cpu_utilization_percentage": psutil.cpu_percent()}
        if now > self._read_at:
            # Percent of one CPU core: two busy threads give 200.
            values["process_cpu_utilization_percentage"] = 100 * (own_s - self._own_s) / (now - self._read_at)
        self._read_at, self._own_s = now, own_s
        return values

    def _memory(self) -> dict[str, float]:
        machine = psutil.virtual_memory()
        return {
            "system_memory_usage_megabytes": (machine.total - machine.available) / _MB,
            "system_memory_usage_percentage": machine.percent,
            "process_memory_usage_megabytes": self._own.memory_info().rss / _MB,
        }


def _gpu_memory() -> dict[str, float]:
    if not _uses_gpu():
        return {}
    device = torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(device)
    return {
        f"gpu_{device}_memory_usage_megabytes": (total - free) / _MB,
        f"gpu_{device}_memory_usage_percentage": 100 * (total - free) / total,
    }


def _gpu_utilization() -> dict[str, float]:
    # torch queries NVML, which needs the package nvidia-ml-py and a working driver, and refuses a card under MIG.
    if not _uses_gpu():
        return {}
    device = torch.cuda.current_device()
    return {f"gpu_{device}_utilization_percentage": float(torch.cuda.utilization(device))}


def _uses_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
