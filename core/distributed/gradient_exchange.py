"""The sum of gradients over workers: one flat buffer that the gradients live in, exchanged in buckets.

Because the buffer *is* the gradients, an exchange copies nothing. The price is one gradient in memory at all times.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from core.distributed.workers import Workers

_BUCKET_ELEMENTS = 2**22
"""16 MiB: large enough that latency does not count, small enough that the first is under way early."""


class GradientExchange:
    """Gradients of a model's parameters, summed over the workers after the backward pass or during it.

    Both ways sum the same numbers in the same buckets, so they give the same bits. During: `start` before the last
    backward pass of a step, `finish` after it. After: `finish` alone.
    """

    def __init__(self, model: nn.Module, workers: Workers, *, bucket_elements: int = _BUCKET_ELEMENTS) -> None:
        self._workers = workers
        self._bucket_elements = bucket_elements
        # Backward reaches the last parameters first; laid out in that order, whole buckets become ready early.
        self._parameters = [p for p in reversed(list(model.parameters())) if p.requires_grad]
        dtype = self._parameters[0].dtype
        self._flat = torch.zeros(sum(p.numel() for p in self._parameters), dtype=dtype, device=workers.device)
        self._buckets: list[Tensor] = []
        self._bucket_of: list[int] = []
        self._sizes: list[int] = []
        """Parameters in each bucket."""
        self._lay_out()
        self._order: list[int] | None = None
        """Buckets in the order in which they become ready, the same on all ranks; None until seen once."""
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
        """Size of the buffer."""
        return self._flat.nbytes

    def reset(self) -> None:
        """Set all gradients to zero, for a new step or a new try of the same."""
        self._flat.zero_()

    def start(self) -> None:
        """From now on a bucket is sent as soon as the gradients of all its parameters are there."""
        self._waiting = list(self._sizes)
        self._ready = []
        self._num_sent = 0
        self._is_started = True

    def finish(self) -> None:
        """Send what has not been sent and wait for the sums.

        Every rank sends every bucket in the same order whatever happened to its backward pass: a rank that ran out of
        memory sends rubbish, which the step then throws away, and leaves no other rank waiting.
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
        """Fix the order of sending once a backward pass was seen between `start` and `finish`; all ranks call it.

        Ranks must send in one order, so rank 0's order of arrival becomes everybody's.
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
