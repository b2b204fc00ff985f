"""Vocabulary head, forward and backward in one pass: logits are overwritten by their gradient.

Only a softmax lies between the two passes, so no autograd graph is needed. The logits exist once, in the format of the
products, and the gradient of the matrix is accumulated in place.

Source: Liger kernels do the same on GPUs, arXiv:2410.10989.

`python tests/benchmarks/kernels.py`: 0.21 to 0.46 of the memory of torch's linear and loss, 0.92 to 1.01 of its time.

Shape suffixes: P predicted positions, F features of the head, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.layers.cache_blocks import blocks, has_cache_blocks
from core.step.step_profile import Span

_LOGITS_IN_CACHE = 2**20
"""4 MiB in fp32; together with their softmax they fit in a usual last-level cache."""

_WEIGHTS_IN_CACHE = 2**21

_AT_ONCE_ON_A_GPU = 2**24


def add_head_gradients(
    features_PF: Tensor,
    matrix_VF: Tensor,
    bias_V: Tensor | None,
    labels_P: Tensor,
    *,
    dtype: torch.dtype,
    scale: float,
    positions_at_once: int,
    span: Span,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the logits `features @ matrix.T + bias`, and its gradients.

    Adds to `.grad` of the matrix and the bias, and creates it if it is None; frozen ones get none.

    Args:
        dtype: Number format of the matrix products; sums, the softmax and the gradients of the weights are fp32.
        scale: Factor on all gradients, not on the loss.
        positions_at_once: Number of positions whose logits exist at once.
        span: Opens a stretch of the profile.

    Returns:
        (summed loss in nats (fp64), gradient of the features (P, F) in their format).
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=features_PF.device)
    gradient_PF = torch.empty_like(features_PF)
    with torch.no_grad(), torch.autocast(features_PF.device.type, enabled=False):
        cast_VF = matrix_VF.to(dtype)
        cast_V = None if bias_V is None else bias_V.to(dtype)
        trained_V = bias_V if bias_V is not None and bias_V.requires_grad else None
        for chunk in blocks(labels_P.numel(), positions_at_once):
            with span("forward"):
                cast_PF = features_PF[chunk].to(dtype)
                logits_PV = F.linear(cast_PF, cast_VF, cast_V)
                loss_sum += turn_into_gradient(logits_PV, labels_P[chunk], trained_V, scale)
            with span("backward"):
                gradient_PF[chunk].copy_(logits_PV @ cast_VF)
                if matrix_VF.requires_grad:
                    _add_matrix_gradient(matrix_VF, logits_PV, cast_PF)
            del logits_PV
    return loss_sum, gradient_PF


def turn_into_gradient(logits_PV: Tensor, labels_P: Tensor, bias_V: Tensor | None, scale: float) -> Tensor:
    """Overwrite the logits by softmax minus one-hot, add the gradient of the bias; returns the summed loss."""
    accurate = torch.promote_types(logits_PV.dtype, torch.float32)
    loss_sum = torch.zeros((), dtype=torch.float64, device=logits_PV.device)
    for rows in blocks(len(labels_P), _at_once(logits_PV, _LOGITS_IN_CACHE) // logits_PV.shape[1]):
        block_PV, labels_P1 = logits_PV[rows].to(accurate), labels_P[rows].unsqueeze(-1)
        probabilities_PV = torch.softmax(block_PV, dim=-1)
        # Exact normaliser without a second exponential: the largest probability is never tiny.
        normalizer_P1 = block_PV.amax(-1, keepdim=True) - probabilities_PV.amax(-1, keepdim=True).log()
        loss_sum += (normalizer_P1 - block_PV.gather(-1, labels_P1)).double().sum()
        probabilities_PV.scatter_add_(-1, labels_P1, torch.full_like(labels_P1, -1.0, dtype=accurate))
        if scale != 1.0:
            probabilities_PV *= scale
        if bias_V is not None:
            _add_to_gradient(bias_V, slice(None), probabilities_PV.sum(0))
        logits_PV[rows].copy_(probabilities_PV)
    return loss_sum


def _add_matrix_gradient(matrix_VF: Tensor, gradient_PV: Tensor, cast_PF: Tensor) -> None:
    at_once = _at_once(matrix_VF, _WEIGHTS_IN_CACHE) // matrix_VF.shape[1]
    for rows in blocks(len(matrix_VF), at_once):
        _add_to_gradient(matrix_VF, rows, gradient_PV[:, rows].t() @ cast_PF)


def _add_to_gradient(parameter: Tensor, rows: slice, addend: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad[rows].add_(addend)


def _at_once(like: Tensor, in_cache: int) -> int:
    """Number of elements of a block."""
    return in_cache if has_cache_blocks(like.device) else _AT_ONCE_ON_A_GPU
