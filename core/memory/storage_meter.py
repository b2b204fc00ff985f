"""Count the bytes of live tensor storages on a CPU."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.memory.kernel_workspace import scratch_bytes
from core.torch_internals.fake_tensors import FakeTensor, device_query
from core.torch_internals.operator_watch import TorchDispatchMode, is_innermost, sparse_parts, storage_key, tree_leaves
from data_pipeline.schema.settings import format_bytes

OnChange = Callable[[int, int, Tensor | None], None]
Trackable = Tensor | nn.Module | torch.optim.Optimizer | Iterable[Tensor]


class StorageMeter:
    """Counts bytes of live tensor storages; `memory_limit` is its public interface.

    A storage counts from the operator that returns it until its memory is freed, also while only autograd or an
    optimizer holds it. Views add nothing.

    Args:
        budget_bytes: Memory limit: raise `torch.OutOfMemoryError` if more would be live; None sets no limit.
        of_fakes: True counts only fake tensors. False ignores them, because they have no memory.
        kernels_of: Device type whose kernels' scratch memory is counted.
        on_change: Called with (storage key, bytes, a tensor on it) when a storage appears, and with
            (key, -bytes, None) when it is freed.
        on_scratch: Called with the scratch bytes of a kernel.
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
        """Begin counting the operators of this thread."""
        assert self._mode is None, "the meter is running already"
        self._mode = _CountingMode(self)
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        if self._mode is None:
            return
        self._mode.meter = None
        self._live.clear()
        # Dispatch modes form a stack. Below another mode this one stays, idle, and is removed at the next stop.
        if is_innermost(self._mode):
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None

    def track(self, *things: Trackable) -> None:
        for thing in things:
            for tensor in _tensors_of(thing):
                self.count(tensor, "tracking existing tensors")

    def count(self, tensor: Tensor, operator: object) -> None:
        """Count the tensor's storage unless it is already counted.

        Args:
            operator: Named in the error.

        Raises:
            torch.OutOfMemoryError: It exceeds the memory limit; it is not counted then.
        """
        if isinstance(tensor, FakeTensor) != self._of_fakes or (tensor.is_meta and not self._of_fakes):
            return
        if tensor.layout is not torch.strided:
            if tensor.layout is torch.sparse_coo:
                for part in sparse_parts(tensor):
                    self.count(part, operator)
            return
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        num_bytes = storage.nbytes()
        known_bytes = self._live[key][1] if key in self._live else 0
        if num_bytes == known_bytes:
            return
        growth_bytes = num_bytes - known_bytes
        self._check(growth_bytes, operator)
        self._forget(key)
        if num_bytes == 0:
            return
        # The callback of the weak reference runs when the memory is freed, after the last owner in C++ too.
        self._live[key] = (weakref.ref(storage, partial(self._forget, key)), num_bytes)
        self.current_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)
        if self._on_change is not None:
            self._on_change(key, num_bytes, tensor)

    def note_call(self, operator: object, arguments: Sequence[Any], output: object) -> None:
        """Count the outputs of an operator call and the scratch memory of its kernel.

        Raises:
            torch.OutOfMemoryError: They exceed the memory limit.
        """
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
                f"Memory limit exceeded (counted by pretune, not the device's own limit). Tried to allocate "
                f"{growth_bytes} bytes in {operator}; {format_bytes(self.current_bytes)} are live of a memory limit of "
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
        if func is device_query:
            return args[0].device  # Asked ten times as often as all else, and makes no tensor.
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
