"""The loss of masked and causal language modelling: a sum over predicted tokens, and its gradients.

Both objectives are one calculation, for a batch names the positions that predict and what they predict.

Shape suffixes: B rows, T tokens a row, D width, P predicted positions, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from core.language_model import LanguageModel
from core.layers import Attention
from core.precision import Precision
from data_pipeline.batches import Batch

HiddenStates = Callable[[Tensor, Tensor | None], Tensor]
"""(inputs_BT, document_ids_BT) to hidden_BTD: a model's own method, or that method compiled."""

Span = Callable[[Literal["forward", "backward"]], AbstractContextManager[object]]
"""Opens a stretch of time on the profile."""

_MIN_LOGITS_AT_ONCE = 2**24
_SAVED_BYTES_A_LAYER = 32  # for each token and channel: about sixteen bf16 numbers
_BYTES_A_LOGIT = 10  # bf16 logits, fp32 probabilities, bf16 gradient, and the temporary of logsumexp


def summed_loss(
    model: LanguageModel, batch: Batch, precision: Precision, *, positions_at_once: int | None = None
) -> tuple[Tensor, int]:
    """Cross-entropy in nats, summed over the batch's predicted positions, and how many these are.

    Differentiable as a whole. Training calls `add_gradients`, which gives the same gradients in less memory.

    Args:
        positions_at_once: Logits exist for so many positions at a time; None: as `chunk_length` says.
    """
    with precision.autocast():
        predicted_PD = predicted_hidden(model.hidden_states, batch)
        loss_sum: Tensor = torch.zeros((), device=predicted_PD.device)
        for chunk in _chunks(batch, positions_at_once or chunk_length(model, batch)):
            logits_PV = model.logits(predicted_PD[chunk])
            logits_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32))
            loss_sum = loss_sum + F.cross_entropy(logits_PV, batch.labels_P[chunk], reduction="sum")
    return loss_sum, batch.labels_P.numel()


def add_gradients(
    model: LanguageModel,
    batch: Batch,
    precision: Precision,
    *,
    scale: float = 1.0,
    hidden_states: HiddenStates | None = None,
    positions_at_once: int | None = None,
    span: Span = lambda _: nullcontext(),
    before_last_backward: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor | None]:
    """Forward and backward of one micro-batch: adds the gradients of its summed loss to every parameter's `.grad`.

    The head goes forward and backward one chunk of positions after another, so that the logits of a chunk are all that
    ever exists of (positions x vocabulary); then one backward pass goes through the body. Nothing here waits for the
    device or depends on values, so it runs on fake tensors as well.

    Args:
        scale: Factor on the gradients, for number formats that would lose small ones.
        hidden_states: Stands in for the model's own, compiled for instance.
        span: Opens a stretch on the profile.
        before_last_backward: Called before the backward pass of the body, after which no gradient changes any more.

    Returns:
        Summed loss in nats (fp64), and the auxiliary loss weighted by the number of predicted tokens (None without
        one), both detached and unscaled. Weighted so, it comes out as a mean once all is divided by the global count.
    """
    with precision.autocast():
        with span("forward"):
            predicted_PD = predicted_hidden(hidden_states or model.hidden_states, batch)
            auxiliary = model.auxiliary_loss()
        leaf_PD = predicted_PD.detach().requires_grad_()
        loss_sum = torch.zeros((), dtype=torch.float64, device=leaf_PD.device)
        for chunk in _chunks(batch, positions_at_once or chunk_length(model, batch)):
            with span("forward"):
                logits_PV = model.logits(leaf_PD[chunk])
                chunk_loss, gradient_PV = _cross_entropy_and_gradient(logits_PV.detach(), batch.labels_P[chunk], scale)
                loss_sum += chunk_loss
            # The casts of the head's weights stay cached between chunks; only backward itself must not autocast.
            with span("backward"), precision.autocast(enabled=False):
                torch.autograd.backward(logits_PV, gradient_PV)
            del logits_PV, gradient_PV
    weighted = None if auxiliary is None else auxiliary * batch.labels_P.numel()
    before_last_backward()
    with span("backward"):
        # One call, so that every parameter of the body gets its gradient once and an exchange may start at once.
        roots = [(predicted_PD, leaf_PD.grad)]
        if weighted is not None:
            roots.append((weighted, torch.full_like(weighted, scale)))
        torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
    return loss_sum, None if weighted is None else weighted.detach()


def predicted_hidden(hidden_states: HiddenStates, batch: Batch) -> Tensor:
    """Hidden states at the positions that predict, (P, D): the vocabulary head never sees the others."""
    hidden_BTD = hidden_states(batch.inputs_BT, batch.document_ids_BT)
    return hidden_BTD.flatten(0, 1).index_select(0, batch.positions_P)


def chunk_length(model: LanguageModel, batch: Batch) -> int:
    """Positions whose logits exist at once: as many as stay below the memory of the body's activations."""
    vocabulary_size, width = model.tokens.weight.shape
    num_layers = sum(isinstance(module, Attention) for module in model.modules())
    activation_bytes = _SAVED_BYTES_A_LAYER * batch.inputs_BT.numel() * width * num_layers
    logits_at_once = max(_MIN_LOGITS_AT_ONCE, activation_bytes // _BYTES_A_LOGIT)
    return max(1, logits_at_once // vocabulary_size)


def _chunks(batch: Batch, length: int) -> Iterator[slice]:
    num_positions = batch.labels_P.numel()
    # Chunks of equal length: the last would otherwise cost a pass over the head's weights for a few positions.
    num_chunks = -(-num_positions // length)
    for number in range(num_chunks):
        yield slice(number * num_positions // num_chunks, (number + 1) * num_positions // num_chunks)


def _cross_entropy_and_gradient(logits_PV: Tensor, labels_P: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and its gradient at the logits, in the logits' own format."""
    dtype = torch.promote_types(logits_PV.dtype, torch.float32)
    gradient_PV = logits_PV.to(dtype, copy=True)
    normalizer_P1 = torch.logsumexp(gradient_PV, dim=-1, keepdim=True)
    labels_P1 = labels_P.unsqueeze(-1)
    loss = (normalizer_P1 - gradient_PV.gather(-1, labels_P1)).sum()
    # In place from here: softmax minus one-hot is the gradient, and the copy is ours.
    gradient_PV.sub_(normalizer_P1).exp_()
    gradient_PV.scatter_add_(-1, labels_P1, torch.full_like(labels_P1, -1.0, dtype=dtype))
    if scale != 1.0:
        gradient_PV *= scale
    return loss, gradient_PV.to(logits_PV.dtype)
