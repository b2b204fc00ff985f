"""Memory limits: measure the memory of a block of code, and raise the device's out-of-memory error above a limit.

On CUDA the caching allocator counts and refuses. A CPU has no such allocator, so a dispatch mode observes every torch
operator and counts the bytes of live storages; above the limit it raises the same error as CUDA.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Protocol

import torch

from core.memory.memory_reports import LimitBy
from core.memory.storage_meter import StorageMeter, Trackable


class MemoryMeter(Protocol):
    """Memory of the block of code inside `memory_limit`."""

    @property
    def peak_bytes(self) -> int:
        """Peak so far: of live bytes on a CPU, of reserved bytes on CUDA."""

    @property
    def current_bytes(self) -> int:
        """Bytes live now; on CUDA reserved."""

    @property
    def is_running(self) -> bool:
        """True until `stop` or the end of the block."""

    def track(self, *things: Trackable) -> None:
        """Count objects that existed before the block: parameters, buffers, gradients, optimizer state, tensors."""

    def stop(self) -> None:
        """Stop measuring and limiting, and keep the figures; there is no further cost. For proven flat memory."""


@contextmanager
def memory_limit(limit_bytes: int | None, device: torch.device, *, by: LimitBy = "counting") -> Iterator[MemoryMeter]:
    """Measure the memory of the block on the device and, given a limit, raise `torch.OutOfMemoryError` above it.

    CPU: every operator costs a few microseconds (5-8 % of a step, up to 15 % for tiny models). Older tensors count
    once they are `track`ed or viewed. Memory of compiled graphs is not counted, and only this thread is observed.
    CUDA: no cost; the limit applies to all memory reserved by the allocator, including memory from before the block.

    Args:
        limit_bytes: Memory limit; None measures only.
        by: On a CPU, the mechanism of the limit. With `rlimit` (see `process_limit`) other error types occur too.

    Raises:
        torch.OutOfMemoryError: In the block, at the operator that exceeds the limit.
        ValueError: The limit is below one byte.
    """
    if limit_bytes is not None and limit_bytes < 1:
        raise ValueError(f"limit_bytes={limit_bytes} is below 1; give at least one byte, or None for no limit")
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
    # What an earlier run left in the allocator's cache is no need of this one.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        yield meter
    except BaseException:
        # On a broken device this fails, too; the error of the block is the cause.
        with suppress(RuntimeError):
            meter.stop()
        raise
    meter.stop()


class _CudaMeter:
    """Bytes that the caching allocator reserves: the limit is on them, and the tensors in them are fewer."""

    def __init__(self, device: torch.device, fraction_before: float) -> None:
        self._device = device
        self._fraction_before = fraction_before
        self._final: tuple[int, int] | None = None

    @property
    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_reserved(self._device) if self._final is None else self._final[0]

    @property
    def current_bytes(self) -> int:
        return torch.cuda.memory_reserved(self._device) if self._final is None else self._final[1]

    @property
    def is_running(self) -> bool:
        return self._final is None

    def track(self, *things: Trackable) -> None:
        """No action: the allocator counts all tensors on its device."""

    def stop(self) -> None:
        if self._final is None:
            self._final = (self.peak_bytes, self.current_bytes)
            torch.cuda.set_per_process_memory_fraction(self._fraction_before, self._device)


@contextmanager
def process_limit(extra_bytes: int) -> Iterator[None]:
    """Limit further private memory of this process to `extra_bytes`: the kernel refuses more (RLIMIT_DATA).

    Stricter than counting: it covers all allocations of all threads, but its errors name neither tensor nor size.
    Start the process with MALLOC_MMAP_THRESHOLD_=65536 and warm it up (imports, one step); otherwise a library that
    cannot handle the refusal may abort the process. Unix only.
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
