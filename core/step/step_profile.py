"""Where the time of training goes: stretches of named time, summed until somebody reads them."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from core.layers.low_rank import LowRankLinear
from core.models.language_model import LanguageModel
from core.settings.precision import Precision
from core.torch_internals.unlisted_kernels import GROUPED_PRODUCT
from data_pipeline.tokens.batches import Batch

Stretch = Literal["data", "forward", "backward", "exchange", "optimizer"]
Span = Callable[[Literal["forward", "backward"]], AbstractContextManager[object]]
"""Opens a stretch of time of a micro-batch on the profile."""

_PRODUCTS_WITH_WEIGHTS = (torch.ops.aten.mm, torch.ops.aten.addmm, GROUPED_PRODUCT)
"""The other products of a model are of queries, keys and values."""

STRETCHES: tuple[Stretch, ...] = ("data", "forward", "backward", "exchange", "optimizer")


class StepProfile:
    """Time spent in each stretch. On CUDA the device's clock counts, read without waiting in between."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds = dict.fromkeys(STRETCHES, 0.0)
        self._events: list[tuple[Stretch, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def span(self, stretch: Stretch) -> Iterator[None]:
        """Adds the time of the block to a stretch."""
        if self._is_cuda:
            begin, end = _cuda_event(), _cuda_event()
            begin.record()
            yield
            end.record()
            self._events.append((stretch, begin, end))
            return
        started_at = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stretch] += time.perf_counter() - started_at

    def read(self, *, num_steps: int) -> dict[str, float]:
        """Milliseconds a step in each stretch since the last reading: `profile/forward_ms` and so on."""
        if self._events:
            torch.cuda.synchronize()
            for stretch, begin, end in self._events:
                self._seconds[stretch] += begin.elapsed_time(end) / 1000
            self._events = []
        found = {f"profile/{stretch}_ms": 1000 * s / max(num_steps, 1) for stretch, s in self._seconds.items()}
        self._seconds = dict.fromkeys(STRETCHES, 0.0)
        return found


@torch.no_grad()
def model_flops_a_token(model: LanguageModel, batch: Batch, precision: Precision) -> float:
    """Floating-point operations of one training step for each real token, as `flops_with_backward` has them.

    Counted, not guessed from the parameter count, so experts that are not asked and positions that predict nothing do
    not count. Recomputed activations do not count either: this is what the model needs.
    """
    with FlopCounterMode(display=False) as counter, precision.autocast():
        hidden_BTD = model.hidden_states(batch.inputs_BT, batch.document_ids_BT)
        model.logits(hidden_BTD.flatten(0, 1).index_select(0, batch.positions_P))
    return flops_with_backward(counter, model, num_tokens=batch.inputs_BT.numel()) / max(batch.num_tokens, 1)


def flops_with_backward(counter: FlopCounterMode, model: LanguageModel, *, num_tokens: int) -> float:
    """Operations of a forward pass and of the backward pass that belongs to it.

    A backward pass has two matrix products for each of the forward pass, one for either factor; of a frozen matrix only
    that for its input. That the first layer's input needs none is left out of account.

    Args:
        counter: Of the forward pass.
        num_tokens: That went through the adapters, if the model has any.
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
    """Measured rate of large matrix products on a device, the ceiling of any model's. Some 50 ms, once a process."""
    size, repeats = (8192, 5) if device.type == "cuda" else (1536, 3)
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest_s = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
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
