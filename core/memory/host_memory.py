"""Memory that this process may use, by the limits of container, machine and device."""

import os
from pathlib import Path

import torch

CUDA_CONTEXT_BYTES = 600 * 2**20
"""What CUDA's context and libraries take of a GPU in each process, before its first tensor: a usual size, not measured.
"""
NCCL_BYTES = 2**30
"""What NCCL's buffers take of a GPU in each process of a trial with several workers: a usual upper size, not measured.
"""
_CGROUP_MOUNT = Path("/sys/fs/cgroup")


def memory_share_bytes(device: torch.device, *, num_processes: int = 1) -> int:
    """Bytes that each of `num_processes` equal processes may use; `memory: auto` has this value.

    CUDA: free device memory plus the memory reserved by this process's allocator; the context and other processes keep
    theirs. CPU: the minimum of the remaining memory of all control groups above this process and the available memory
    of the machine.

    Raises:
        ValueError: num_processes is below 1.
    """
    if num_processes < 1:
        raise ValueError(f"num_processes={num_processes} is below 1; give at least one process")
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return (free_bytes + torch.cuda.memory_reserved(device)) // num_processes
    return host_memory_share(num_processes=num_processes)


def within_device(limit_bytes: int | None, device: torch.device) -> int | None:
    """A memory limit, lowered on CUDA to the bytes that this process can have now.

    Its own context and the buffers of NCCL are there by now, so a shortage below the result has another process as its
    cause.
    """
    if limit_bytes is None or device.type != "cuda":
        return limit_bytes
    return min(limit_bytes, memory_share_bytes(device))


def host_memory_share(*, num_processes: int = 1, mount: Path = _CGROUP_MOUNT, proc: Path = Path("/proc")) -> int:
    """Host bytes that each of `num_processes` equal processes may use, by control groups and machine.

    Args:
        mount: Mount point of the control groups.
        proc: Mount point of procfs.
    """
    candidates = [_available_bytes(proc)]
    for folder in _cgroup_folders("memory", mount, proc):
        for limit_name, usage_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit_bytes, used_bytes = _number_in(folder / limit_name), _number_in(folder / usage_name)
            if limit_bytes is not None:
                # Page cache counts as used, but the kernel reclaims it on demand.
                reclaimable_bytes = _field_in(folder / "memory.stat", "inactive_file") or 0
                candidates.append(max(0, limit_bytes - max(0, (used_bytes or 0) - reclaimable_bytes)))
    return min(candidates) // num_processes


def kernel_oom_kills(*, mount: Path = _CGROUP_MOUNT, proc: Path = Path("/proc")) -> int:
    """Number of processes of this control group killed by the kernel's out-of-memory killer; 0 if it is unknown.

    Growth between two readings is evidence that a vanished process was killed for memory.
    """
    for folder in _cgroup_folders("memory", mount, proc):
        for name in ("memory.events", "memory.oom_control"):
            kills = _field_in(folder / name, "oom_kill")
            if kills is not None:
                return kills
    return 0


def _available_bytes(proc: Path) -> int:
    kibibytes = _field_in(proc / "meminfo", "MemAvailable:")
    if kibibytes is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return kibibytes * 1024


def _cgroup_folders(controller: str, mount: Path, proc: Path) -> list[Path]:
    """Folders of this process's control group and its ancestors, innermost first; version 1 and 2."""
    found = []
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = mount
        elif controller in controllers.split(","):
            root = mount / controller
        else:
            continue
        folder = root / path.lstrip("/")
        # Inside a container the path may be the host's while the mount is the container's: then only the root exists.
        while folder != root and root in folder.parents:
            found.append(folder)
            folder = folder.parent
        found.append(root)
    return [folder for folder in found if folder.is_dir()]


def _number_in(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def _field_in(path: Path, name: str) -> int | None:
    try:
        text = path.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name:
            return int(words[1])
    return None
