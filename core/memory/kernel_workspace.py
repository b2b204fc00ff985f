"""Memory that a kernel takes and gives back within one call, which therefore no operator ever shows.

Most kernels take none worth counting. These are the exceptions among the operators of training, found by comparing
torch's record of allocations with what its operators return.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_EXPONENTIAL_COPY = frozenset({_aten.logsumexp.default})
"""Hold exp(input - maximum) while they sum it."""

_ELEMENTWISE = frozenset({_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.add_.Tensor})
"""On a CPU, convert an operand of another number format as a whole; on CUDA number by number."""


def scratch_bytes(operator: object, arguments: Sequence[Any], output: object, *, device_type: str) -> int:
    """Bytes that one call takes beyond its arguments and its output."""
    if operator in _EXPONENTIAL_COPY:
        return int(arguments[0].nbytes)
    if device_type == "cpu" and operator in _ELEMENTWISE and isinstance(output, Tensor):
        return sum(
            argument.numel() * output.element_size()
            for argument in arguments
            if isinstance(argument, Tensor) and argument.dtype != output.dtype and argument.ndim > 0
        )
    return 0
