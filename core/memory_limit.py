"""Memory budgets: what a block of code holds at most, and an error in the way of the device when it wants more.

On CUDA the caching allocator counts and refuses. A CPU has no such allocator, so a dispatch mode watches every operator
of torch and counts the bytes of live storages; over the budget it raises what CUDA raises.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from core.kernel_scratch import scratch_bytes
from core.passed_on import LimitBy
from data_pipeline.settings import format_bytes

OnChange = Callable[[int, int, Tensor | None], None]
Trackable = Tensor | nn.Module | torch.optim.Optimizer | Iterable[Tensor]


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


class StorageMeter:
    """Counts bytes of live tensor storages. `memory_limit` is its front door.

    A storage counts from the operator that returns it until its memory goes back, whoever holds it: a Python name, the
    graph of autograd, an optimizer. Views add nothing.

    Args:
        budget_bytes: Raise `torch.OutOfMemoryError` when more would be live; None never does.
        of_fakes: Count fake tensors, and those only. Otherwise they do not count, for they have no memory.
        kernels_of: The kind of device whose kernels' scratch counts.
        on_change: Called with (storage key, bytes, a tensor on it) when a storage appears, (key, -bytes, None) when it
            goes.
        on_scratch: Called with the bytes that a kernel took and gave back.
    """

    def __init__(
        self,
        budget_bytes: int | None = None,
        *,
        of_fakes: bool = False,
        kernels_of: Literal["cpu", "cuda"] = "cpu",
        on_change: OnChange | None = None,
        on_scratch: Callable[[int], None] | None = None,
    ) -> None:
        self.current_bytes = 0
        self.peak_bytes = 0
        self.budget_bytes = budget_bytes
        self._of_fakes = of_fakes
        self._kernels_of = kernels_of
        self._on_change = on_change
        self._on_scratch = on_scratch
        self._live: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._mode: _CountingMode | None = None

    @property
    def is_running(self) -> bool:
        return self._mode is not None and self._mode.meter is not None

    def start(self) -> None:
        """Begin watching this thread's operators."""
        assert self._mode is None, "the meter is running already"
        self._mode = _CountingMode(self)
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        if self._mode is None:
            return
        self._mode.meter = None
        self._live.clear()
        # Modes leave in the order of a stack. Below another one it stays for now, idle, and leaves at the next stop.
        if _get_current_dispatch_mode() is self._mode:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None

    def track(self, *things: Trackable) -> None:
        for thing in things:
            for tensor in _tensors_of(thing):
                self.count(tensor, "tracking what existed before")

    def count(self, tensor: Tensor, operator: object) -> None:
        """Count the tensor's storage unless it is counted already.

        Raises:
            torch.OutOfMemoryError: It does not fit into the budget; it is not counted then.
        """
        if isinstance(tensor, FakeTensor) != self._of_fakes or (tensor.is_meta and not self._of_fakes):
            return
        if tensor.layout is not torch.strided:
            if tensor.layout is torch.sparse_coo:
                self.count(tensor._indices(), operator)
                self.count(tensor._values(), operator)
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        num_bytes = storage.nbytes()
        known_bytes = self._live[key][1] if key in self._live else 0
        if num_bytes == known_bytes:
            return
        growth_bytes = num_bytes - known_bytes
        self._check(growth_bytes, operator)
        self._forget(key)
        if num_bytes == 0:
            return
        # The weak reference's callback runs when the memory really goes back, after the last owner in C++ as well.
        self._live[key] = (weakref.ref(storage, partial(self._forget, key)), num_bytes)
        self.current_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)
        if self._on_change is not None:
            self._on_change(key, num_bytes, tensor)

    def note_call(self, operator: object, arguments: Sequence[Any], output: object) -> None:
        """Count what a call of an operator has returned, and what its kernel took for itself meanwhile."""
        if not isinstance(output, Tensor):
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor):
                    self.count(leaf, operator)
            return
        self.count(output, operator)
        num_bytes = scratch_bytes(operator, arguments, output, device_type=self._kernels_of)
        if num_bytes > 0 and isinstance(output, FakeTensor) == self._of_fakes:
            self._check(num_bytes, operator)
            self.peak_bytes = max(self.peak_bytes, self.current_bytes + num_bytes)
            if self._on_scratch is not None:
                self._on_scratch(num_bytes)

    def _check(self, growth_bytes: int, operator: object) -> None:
        if self.budget_bytes is not None and growth_bytes > 0 and self.current_bytes + growth_bytes > self.budget_bytes:
            raise torch.OutOfMemoryError(
                f"Memory budget exceeded (counted by pretune, not the device's own limit). Tried to allocate "
                f"{growth_bytes} bytes in {operator}; {format_bytes(self.current_bytes)} are live of a budget of "
                f"{format_bytes(self.budget_bytes)} ({self.current_bytes} of {self.budget_bytes} bytes)"
            )

    def _forget(self, key: int, _reference: object = None) -> None:
        _, num_bytes = self._live.pop(key, (None, 0))
        self.current_bytes -= num_bytes
        if num_bytes and self._on_change is not None:
            self._on_change(key, -num_bytes, None)


class _CountingMode(TorchDispatchMode):
    def __init__(self, meter: StorageMeter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.meter: StorageMeter | None = meter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.meter is not None:
            self.meter.note_call(func, args, output)
        return output


def _tensors_of(thing: Trackable) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
        if thing.is_leaf and thing.grad is not None:
            yield thing.grad
    elif isinstance(thing, nn.Module):
        for tensor in (*thing.parameters(), *thing.buffers()):
            yield from _tensors_of(tensor)
    elif isinstance(thing, torch.optim.Optimizer):
        for group in thing.param_groups:
            for parameter in group["params"]:
                yield from _tensors_of(parameter)
        yield from (leaf for leaf in tree_leaves(list(thing.state.values())) if isinstance(leaf, Tensor))
    else:
        for tensor in thing:
            yield from _tensors_of(tensor)


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
