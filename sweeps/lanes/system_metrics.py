"""CPU, memory and GPU metrics of a trial's machine, under the names of MLflow's system metrics page."""

import time
from contextlib import suppress
from pathlib import Path

import torch

_MB = 1e6


class SystemMetrics:
    """Reads system metrics. Shares are means since the last reading; unavailable values are left out."""

    def __init__(self) -> None:
        self._read_at, self._own_s = time.monotonic(), time.process_time()
        self._busy, self._total = _processor_ticks()

    def read(self) -> dict[str, float]:
        """Percentages and megabytes, as MLflow's own system metrics; takes well under a millisecond on a CPU."""
        values = self._processors() | _memory()
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            values |= _gpu()
        return {f"system/{name}": value for name, value in values.items()}

    def _processors(self) -> dict[str, float]:
        now, own_s = time.monotonic(), time.process_time()
        busy, total = _processor_ticks()
        values = {}
        if total > self._total:
            values["cpu_utilization_percentage"] = 100 * (busy - self._busy) / (total - self._total)
        if now > self._read_at:
            # Percent of one CPU core: two busy threads give 200.
            values["process_cpu_utilization_percentage"] = 100 * (own_s - self._own_s) / (now - self._read_at)
        self._read_at, self._own_s, self._busy, self._total = now, own_s, busy, total
        return values


def _processor_ticks() -> tuple[int, int]:
    """Busy and total ticks of the machine's CPUs since boot; zeros on other kernels than Linux."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return 0, 0
    # Fields: user nice system idle iowait irq softirq steal; user includes guest time.
    ticks = [int(word) for word in first.split()[1:9]]
    return sum(ticks) - sum(ticks[3:5]), sum(ticks)


def _memory() -> dict[str, float]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return {}
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total, available = kibibytes["MemTotal"], kibibytes.get("MemAvailable", kibibytes["MemFree"])
    return {
        "system_memory_usage_megabytes": (total - available) * 1024 / _MB,
        "system_memory_usage_percentage": 100 * (total - available) / total,
        "process_memory_usage_megabytes": pages * 4096 / _MB,
    }


def _gpu() -> dict[str, float]:
    device = torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(device)
    values = {
        f"gpu_{device}_memory_usage_megabytes": (total - free) / _MB,
        f"gpu_{device}_memory_usage_percentage": 100 * (total - free) / total,
    }
    # torch queries NVML, which needs the package nvidia-ml-py and a working driver.
    with suppress(ModuleNotFoundError, RuntimeError):
        values[f"gpu_{device}_utilization_percentage"] = float(torch.cuda.utilization(device))
    return values
