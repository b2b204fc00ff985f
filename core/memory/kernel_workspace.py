"""Scratch memory that a kernel allocates and frees within one call; no operator returns it.

Most kernels use a negligible amount. These are the exceptions among the operators of training, found by comparing
torch's record of allocations with the outputs of its operators.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_EXPONENTIAL_COPY = frozenset({_aten.logsumexp.default})
"""They hold exp(input - maximum) while they sum it."""

_ELEMENTWISE = frozenset({_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.add_.Tensor})
"""On a CPU they convert a whole operand of another number format; on CUDA they convert number by number."""


def scratch_bytes(operator: object, arguments: Sequence[Any], output: object, *, device_type: str) -> int:
    """Scratch bytes of one call, beyond its arguments and its output.

    Args:
        operator: An overload of torch.ops.aten.
        arguments: Its positional arguments.
    """
    if operator in _EXPONENTIAL_COPY:
        return int(arguments[0].nbytes)
    if device_type == "cpu" and operator in _ELEMENTWISE and isinstance(output, Tensor):
        return sum(
            argument.numel() * output.element_size()
            for argument in arguments
            if isinstance(argument, Tensor) and argument.dtype != output.dtype and argument.ndim > 0
        )
    return 0
