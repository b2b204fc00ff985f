"""Time profile of training steps, and FLOPs of models and devices."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from core.layers.low_rank import LowRankLinear
from core.models.language_model import LanguageModel
from core.settings.precision import Precision
from core.step.step_stretches import STRETCHES, Stretch
from core.torch_internals.unlisted_kernels import GROUPED_PRODUCT
from data_pipeline.tokens.batches import Batch

Span = Callable[[Literal["forward", "backward"]], AbstractContextManager[object]]
"""Context that adds its time to a stretch of the profile."""

_PRODUCTS_WITH_WEIGHTS = (torch.ops.aten.mm, torch.ops.aten.addmm, GROUPED_PRODUCT)
"""All other matrix products of a model multiply queries, keys and values."""


_MOST_EVENTS = 256
"""Pairs of device events kept between readings; a branch reports only at its end."""


class StepProfile:
    """Time spent in each stretch. On CUDA, device events measure it without synchronization.

    Args:
        is_read: False measures nothing: only rank 0 reports its times.
    """

    def __init__(self, device: torch.device, *, is_read: bool = True) -> None:
        self._is_cuda = device.type == "cuda"
        self._is_read = is_read
        self._seconds = dict.fromkeys(STRETCHES, 0.0)
        self._events: deque[tuple[Stretch, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def span(self, stretch: Stretch) -> Iterator[None]:
        """Add the time of the block to a stretch."""
        if not self._is_read:
            yield
            return
        if self._is_cuda:
            begin, end = _cuda_event(), _cuda_event()
            begin.record()
            yield
            end.record()
            self._events.append((stretch, begin, end))
            while len(self._events) > _MOST_EVENTS and self._events[0][2].query():  # type: ignore[no-untyped-call]
                self._add_oldest()
            return
        started_at = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stretch] += time.perf_counter() - started_at

    def read(self, *, num_steps: int) -> dict[str, float]:
        """Milliseconds per step in each stretch since the last call, as `profile/forward_ms` and so on."""
        if self._events:
            torch.cuda.synchronize()
        while self._events:
            self._add_oldest()
        found = {f"profile/{stretch}_ms": 1000 * s / max(num_steps, 1) for stretch, s in self._seconds.items()}
        self._seconds = dict.fromkeys(STRETCHES, 0.0)
        return found

    def _add_oldest(self) -> None:
        stretch, begin, end = self._events.popleft()
        self._seconds[stretch] += begin.elapsed_time(end) / 1000


@torch.no_grad()
def model_flops_a_token(model: LanguageModel, batch: Batch, precision: Precision) -> float:
    """Floating-point operations of one training step per token (padding not counted), by `flops_with_backward`.

    They are counted, not estimated from the parameter count: inactive experts and positions without prediction do not
    count. Recomputed activations do not count either.
    """
    with FlopCounterMode(display=False) as counter, precision.autocast():
        hidden_BTD = model.hidden_states(batch.inputs_BT, batch.document_ids_BT)
        model.logits(hidden_BTD.flatten(0, 1).index_select(0, batch.positions_P))
    return flops_with_backward(counter, model, num_tokens=batch.inputs_BT.numel()) / max(batch.num_tokens, 1)


def flops_with_backward(counter: FlopCounterMode, model: LanguageModel, *, num_tokens: int) -> float:
    """Floating-point operations of a forward pass and its backward pass.

    A backward pass has two matrix products for each one of the forward pass, but only one for a frozen matrix. The
    product that the input of the first layer does not need is not subtracted.

    Args:
        counter: Counts of the forward pass.
        num_tokens: Tokens that passed through the adapters, if the model has any.
    """
    forward = float(counter.get_total_flops())
    adapters = [matrix for module in model.modules() if isinstance(module, LowRankLinear) for matrix in module.thin()]
    if not adapters:
        return 3.0 * forward
    of_adapters = 2.0 * num_tokens * sum(matrix.numel() for matrix in adapters)
    counts = counter.get_flop_counts()["Global"]
    of_matrices = float(sum(flops for operator, flops in counts.items() if operator in _PRODUCTS_WITH_WEIGHTS))
    return 3.0 * forward - (of_matrices - of_adapters)


@lru_cache(maxsize=8)
def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Measured FLOP/s of large matrix products on a device, an upper bound for any model. About 50 ms per process."""
    size, repeats = (8192, 5) if device.type == "cuda" else (1536, 3)
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest_s = float("inf")
    for _ in range(repeats + 1):  # The first one warms up.
        _wait_for(device)
        started_at = time.perf_counter()
        left @ right
        _wait_for(device)
        fastest_s = min(fastest_s, time.perf_counter() - started_at)
    return float(2 * size**3) / fastest_s


def _cuda_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
