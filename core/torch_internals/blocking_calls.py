"""Calls by which the host waits for a device, counted as they are made, also where the device is a CPU."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_WAITING = {
    Tensor.item: "item",
    Tensor.tolist: "tolist",
    Tensor.cpu: "cpu",
    Tensor.numpy: "numpy",
    Tensor.__bool__: "bool",
    Tensor.__int__: "int",
    Tensor.__float__: "float",
    Tensor.nonzero: "nonzero",
    torch.nonzero: "nonzero",
    torch.masked_select: "masked_select",
}


class BlockingCalls(TorchFunctionMode):
    """Context that counts reads of values, and operators whose shapes depend on values.

    Batches are made on the host, so what `numpy` and `nonzero` do there counts only inside the block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All calls so far."""
        return self.counts.total()

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items())) or "none"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _WAITING:
            self.counts[_WAITING[func]] += 1
        return func(*args, **(kwargs or {}))
