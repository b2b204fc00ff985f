"""Kernels without a public name that does the same at the same cost."""

import torch
from torch import Tensor

GROUPED_PRODUCT = torch.ops.aten._grouped_mm
"""The operator behind a mixture's products of tokens with their experts."""


def softmax_gradient(gradient: Tensor, probabilities: Tensor) -> Tensor:
    """Gradient of the input of a softmax over the last dimension, in one pass and without intermediate tensors."""
    return torch._softmax_backward_data(gradient, probabilities, -1, probabilities.dtype)


def multiply_all(tensors: list[Tensor], factor: float) -> None:
    """Multiply each tensor in place, on CUDA in a few kernels for all of them."""
    torch._foreach_mul_(tensors, factor)
