"""Facts about GPUs, as plain values.

Asking creates a CUDA context, which takes memory and, in exclusive mode, keeps every other process off the card. So a
process that trains asks, or one that ends at once (`python -m core.memory.device_facts`), never the driver of a sweep.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

_DRIVER = Path("/proc/driver/nvidia/version")
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One GPU."""

    name: str
    total_bytes: int
    free_bytes: int
    """Free beside the context of one process that holds no tensor."""
    compute_capability: tuple[int, int]
    computes_bf16: bool
    """False below compute capability 8: `precision: auto` is fp32 there."""
    driver: str
    """Version of the driver; empty if the system does not tell."""

    def __str__(self) -> str:
        major, minor = self.compute_capability
        driver = f", driver {self.driver}" if self.driver else ""
        return f"{self.name}, {self.total_bytes / 2**30:.0f} GiB, compute capability {major}.{minor}{driver}"


def visible_devices() -> list[DeviceFacts]:
    """Facts about each GPU that this process may use. Creates a context on each."""
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        capability = (properties.major, properties.minor)
        found.append(DeviceFacts(properties.name, total_bytes, free_bytes, capability, capability >= (8, 0), _driver()))
    return found


def devices_of_this_machine() -> list[DeviceFacts]:
    """Facts about each GPU of this machine, from a process that ends at once; empty without a GPU.

    Raises:
        RuntimeError: There are GPUs, and the process could not ask them.
    """
    if torch.cuda.device_count() == 0:
        return []
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "core.memory.device_facts"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if asked.returncode != 0:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the GPUs of this machine cannot be asked for their memory: {last}")
    return from_json(asked.stdout.strip().splitlines()[-1])


def smallest_of(devices: Sequence[DeviceFacts]) -> DeviceFacts | None:
    """The device with the least free memory, which counts for all; None without devices."""
    return min(devices, key=lambda one: one.free_bytes, default=None)


def from_json(line: str) -> list[DeviceFacts]:
    """Facts that `as_json` has written."""
    return [DeviceFacts(**{**one, "compute_capability": tuple(one["compute_capability"])}) for one in json.loads(line)]


def as_json(devices: Sequence[DeviceFacts]) -> str:
    """Facts as one line of JSON."""
    return json.dumps([asdict(one) for one in devices])


def _driver() -> str:
    words = _DRIVER.read_text().split() if _DRIVER.is_file() else []
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


if __name__ == "__main__":
    print(as_json(visible_devices()))
