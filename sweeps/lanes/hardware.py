"""Description of the machines that a sweep runs on, as text."""

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.memory.host_memory import host_memory_share
from data_pipeline.schema.settings import format_bytes
from sweeps.lanes.cards import cards_now

_CPU_INFO = Path("/proc/cpuinfo")


def hardware(nodes: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Facts about the driver's machine and the current cluster, by name.

    Args:
        nodes: CPUs (`CPU`) and GPUs (`GPU`) of each node.
    """
    cards = Counter(str(card) for card in cards_now())
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    found = {
        "system": f"{platform.platform(terse=True)}, {platform.machine()}",
        "processor": f"{_processor()}, {os.cpu_count()} of them",
        "memory then free": format_bytes(host_memory_share()),
        "GPUs": "; ".join(f"{count} x {card}" for card, count in cards.items()) or "none",
    }
    if len(nodes) > 1:
        found["cluster"] = f"{len(nodes)} nodes, {cpus:.0f} processors, {gpus:.0f} GPUs"
    return found


def _processor() -> str:
    """Name of the processor, if the system reports it, else its architecture."""
    lines = _CPU_INFO.read_text(errors="replace").splitlines() if _CPU_INFO.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
