"""Sum gradients over workers: all gradients are views of one flat buffer, exchanged in buckets.

An exchange therefore copies nothing; in return, the gradients permanently occupy memory.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from core.distributed.workers import Workers

_BUCKET_ELEMENTS = 2**22
"""16 MiB: large enough to hide latency, small enough to start the first exchange early."""


class GradientExchange:
    """Sums the gradients of a model over the workers, during or after the backward pass.

    Both ways sum the same numbers in the same buckets, so the results are equal bit for bit. During: call `start`
    before the last backward pass of a step and `finish` after it. After: call only `finish`.

    Args:
        bucket_elements: Minimum size of a bucket, in numbers.
    """

    def __init__(self, model: nn.Module, workers: Workers, *, bucket_elements: int = _BUCKET_ELEMENTS) -> None:
        self._workers = workers
        self._bucket_elements = bucket_elements
        # The backward pass reaches the last parameters first; in this order complete buckets become ready early.
        self._parameters = [p for p in reversed(list(model.parameters())) if p.requires_grad]
        dtype = self._parameters[0].dtype
        self._flat = torch.zeros(sum(p.numel() for p in self._parameters), dtype=dtype, device=workers.device)
        self._buckets: list[Tensor] = []
        self._bucket_of: list[int] = []
        self._sizes: list[int] = []
        """Number of parameters in each bucket."""
        self._lay_out()
        self._order: list[int] | None = None
        """Buckets in the order in which they become ready, the same on all ranks; None until `agree_on_order`."""
        self._waiting: list[int] = []
        self._ready: list[int] = []
        self._sums: list[Callable[[], object]] = []
        """Each waits for one that has been started."""
        self._num_sent = 0
        self._is_started = False
        for index, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, index))  # type: ignore[no-untyped-call]

    @property
    def num_bytes(self) -> int:
        """Size of the buffer in bytes."""
        return self._flat.nbytes

    def reset(self) -> None:
        """Set all gradients to zero, for a new step or a retry."""
        self._flat.zero_()

    def start(self) -> None:
        """From now on, send each bucket as soon as all its gradients are complete."""
        self._waiting = list(self._sizes)
        self._ready = []
        self._num_sent = 0
        self._is_started = True

    def finish(self) -> None:
        """Send the remaining buckets and wait for the sums.

        Every rank sends every bucket in the same order, even after a failed backward pass: a rank that ran out of
        memory sends invalid numbers, which the step discards, so that no other rank blocks.
        """
        order = self._order or list(range(len(self._buckets)))
        with self._workers.listening():
            self._send(order[self._num_sent :])
            for wait in self._sums:
                wait()
        self._sums = []
        self._num_sent = 0
        self._is_started = False

    def agree_on_order(self) -> None:
        """Fix the sending order after the first backward pass between `start` and `finish`; all ranks call it.

        All ranks must send in one order, so they use rank 0's order of arrival.
        """
        if self._order is None:
            unseen = [bucket for bucket in range(len(self._buckets)) if bucket not in self._ready]
            first = self._workers.all_values(self._ready + unseen)[0]
            assert isinstance(first, list)
            self._order = first

    def _lay_out(self) -> None:
        offset = 0
        bucket_start = 0
        for parameter in self._parameters:
            self._bucket_of.append(len(self._buckets))
            parameter.grad = self._flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
            if offset - bucket_start >= self._bucket_elements or offset == self._flat.numel():
                self._buckets.append(self._flat[bucket_start:offset])
                bucket_start = offset
        self._sizes = [self._bucket_of.count(bucket) for bucket in range(len(self._buckets))]

    def _arrived(self, index: int, _parameter: Tensor) -> None:
        if not self._is_started:
            return
        bucket = self._bucket_of[index]
        self._waiting[bucket] -= 1
        if self._waiting[bucket] == 0:
            self._ready.append(bucket)
        if self._order is None:
            return
        upcoming = self._order[self._num_sent :]
        num_due = next((n for n, other in enumerate(upcoming) if self._waiting[other] > 0), len(upcoming))
        self._send(upcoming[:num_due])

    def _send(self, buckets: list[int]) -> None:
        self._sums += [self._workers.start_adding_up(self._buckets[bucket]) for bucket in buckets]
        self._num_sent += len(buckets)
