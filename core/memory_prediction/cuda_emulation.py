"""Emulate on CPU tensors the memory that CUDA kernels keep, to predict a GPU's memory without a GPU."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LOW_PRECISION = (torch.bfloat16, torch.float16)

# Functions that autocast runs in fp32 on CUDA but not on the CPU; their backward pass keeps the fp32 copy.
_FP32_ON_CUDA: frozenset[Callable[..., Any]] = frozenset(
    (
        F.layer_norm,
        F.softmax,
        F.log_softmax,
        torch.softmax,
        torch.log_softmax,
        torch.logsumexp,
        torch.rsqrt,
        torch.pow,
        torch.exp,
        Tensor.softmax,
        Tensor.log_softmax,
        Tensor.logsumexp,
        Tensor.rsqrt,
        Tensor.pow,
        Tensor.exp,
    )
)


class CudaForms(TorchFunctionMode):
    """Context in which operators on CPU tensors keep as much memory as CUDA kernels. Values are wrong.

    Four differences: dropout keeps a mask of one byte per number instead of a scaled float; attention is also fused
    with dropout; RMSNorm is one kernel; autocast computes layer norms and exponentials in fp32.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.rms_norm:
            return _rms_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in _FP32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args = tuple(_as_fp32(argument) for argument in args)
        return func(*args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: ARG001
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def _attention(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
    settings["dropout_p"] = 0.0
    return F.scaled_dot_product_attention(query, key, value, **settings)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor, eps: float | None = None) -> Tensor:  # noqa: ARG001
    normed: Tensor = _FusedRMSNorm.apply(input, weight)  # type: ignore[no-untyped-call]
    return normed


class _FusedRMSNorm(torch.autograd.Function):
    """`aten::_fused_rms_norm`: it keeps its input, its weight and one fp32 factor a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        factors = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, weight, factors)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        _, weight, _ = ctx.saved_tensors
        return torch.empty_like(gradient), torch.empty_like(weight)


def _as_fp32(argument: Any) -> Any:
    return argument.float() if isinstance(argument, Tensor) and argument.dtype in _LOW_PRECISION else argument
