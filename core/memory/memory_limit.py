"""Memory budgets: what a block of code holds at most, and an error in the way of the device when it wants more.

On CUDA the caching allocator counts and refuses. A CPU has no such allocator, so a dispatch mode watches every operator
of torch and counts the bytes of live storages; over the budget it raises what CUDA raises.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Protocol

import torch

from core.memory.memory_reports import LimitBy
from core.memory.storage_meter import StorageMeter, Trackable


class MemoryMeter(Protocol):
    """Reads the memory of the block of code that `memory_limit` watches."""

    @property
    def peak_bytes(self) -> int:
        """Most bytes live at one moment so far."""

    @property
    def current_bytes(self) -> int:
        """Bytes live now."""

    @property
    def is_running(self) -> bool:
        """Whether it still watches."""

    def track(self, *things: Trackable) -> None:
        """Count what existed before the block: parameters, buffers and gradients, optimizer state, tensors."""

    def stop(self) -> None:
        """End watching and limiting now, at no further cost; the figures stay. For when memory is proven flat."""


@contextmanager
def memory_limit(limit_bytes: int | None, device: torch.device, *, by: LimitBy = "counting") -> Iterator[MemoryMeter]:
    """Measure what the block holds on the device and, given a limit, raise `torch.OutOfMemoryError` above it.

    On a CPU every operator costs some microseconds more (5-8 % of a step, up to 15 % for tiny models), what existed
    before counts once it is `track`ed or a view of it is taken, memory of compiled graphs is invisible, and only this
    thread is watched.
    On CUDA it costs nothing; the limit then bounds what the allocator reserves, with what the process held before.

    Args:
        limit_bytes: The budget; None measures without a limit.
        by: On a CPU, who refuses. Of `rlimit` see `process_limit`; what it raises is not always torch's own error.

    Raises:
        torch.OutOfMemoryError: In the block, at the operator that goes over.
        ValueError: A limit below one byte.
    """
    if limit_bytes is not None and limit_bytes < 1:
        raise ValueError(f"limit_bytes={limit_bytes} is no budget; give at least one byte, or None for no limit")
    if device.type == "cuda":
        with _cuda_limit(limit_bytes, device) as cuda_meter:
            yield cuda_meter
        return
    is_counted = by == "counting"
    meter = StorageMeter(limit_bytes if is_counted else None)
    with nullcontext() if is_counted or limit_bytes is None else process_limit(limit_bytes):
        meter.start()
        try:
            yield meter
        finally:
            meter.stop()


@contextmanager
def _cuda_limit(limit_bytes: int | None, device: torch.device) -> Iterator["_CudaMeter"]:
    before = torch.cuda.get_per_process_memory_fraction(device)
    meter = _CudaMeter(device, before)
    if limit_bytes is not None:
        total_bytes = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total_bytes), device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        yield meter
    finally:
        meter.stop()


class _CudaMeter:
    """The caching allocator's own figures."""

    def __init__(self, device: torch.device, fraction_before: float) -> None:
        self._device = device
        self._fraction_before = fraction_before
        self._final: tuple[int, int] | None = None

    @property
    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) if self._final is None else self._final[0]

    @property
    def current_bytes(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._final is None else self._final[1]

    @property
    def is_running(self) -> bool:
        return self._final is None

    def track(self, *things: Trackable) -> None:
        """Nothing to do: the allocator knows everything on its device."""

    def stop(self) -> None:
        if self._final is None:
            self._final = (self.peak_bytes, self.current_bytes)
            torch.cuda.set_per_process_memory_fraction(self._fraction_before, self._device)


@contextmanager
def process_limit(extra_bytes: int) -> Iterator[None]:
    """Let this process allocate at most so much more private memory: the kernel refuses, as on a full machine.

    A harder limit than `memory_limit` on a CPU: it counts everything and every thread, but knows neither which tensor
    asked nor how much. Start the process with MALLOC_MMAP_THRESHOLD_=65536 and warm it up first (imports, one step),
    or libraries that cannot handle a refusal may end it. Unix only.
    """
    import resource

    with open("/proc/self/statm") as statm:
        data_pages = int(statm.read().split()[5])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = data_pages * resource.getpagesize() + extra_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
