"""Where the time of training goes: stretches of named time, summed until somebody reads them."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from core.language_model import LanguageModel
from core.precision import Precision
from data_pipeline.batches import Batch

Stretch = Literal["data", "forward", "backward", "exchange", "optimizer"]
Span = Callable[[Literal["forward", "backward"]], AbstractContextManager[object]]
"""Opens a stretch of time of a micro-batch on the profile."""

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
    """Floating-point operations of one training step for each real token: three times those of the forward pass.

    Counted, not guessed from the parameter count, so experts that are not asked and positions that predict nothing do
    not count. Recomputed activations do not count either: this is what the model needs.
    """
    with FlopCounterMode(display=False) as counter, precision.autocast():
        hidden_BTD = model.hidden_states(batch.inputs_BT, batch.document_ids_BT)
        model.logits(hidden_BTD.flatten(0, 1).index_select(0, batch.positions_P))
    forward_flops = int(counter.get_total_flops())
    return 3.0 * forward_flops / max(batch.num_tokens, 1)


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
