"""Loss of masked and causal language modelling, a sum over predicted tokens, and its gradients.

Both objectives share one calculation, because a batch contains its predicted positions and their labels.

Shape suffixes: B rows, T tokens a row, D width, P predicted positions, V vocabulary.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from core.layers.transformer_parts import Attention, compute_dtype
from core.models.given_class import GivenModel
from core.models.language_model import LanguageModel
from core.settings.precision import Precision
from core.step.given_gradients import add_given_gradients
from core.step.step_profile import Span
from core.step.vocabulary_head import add_head_gradients
from data_pipeline.tokens.batches import Batch

HiddenStates = Callable[[Tensor, Tensor | None], Tensor]
"""(inputs_BT, document_ids_BT) to hidden_BTD: a model's own method, or that method compiled."""

_MIN_LOGITS_AT_ONCE = 2**24
_SAVED_BYTES_A_LAYER = 32  # Per token and channel: about sixteen bf16 numbers.
_BYTES_A_LOGIT = 4  # In fp32; half in bf16.


def summed_loss(
    model: LanguageModel, batch: Batch, precision: Precision, *, positions_at_once: int | None = None
) -> tuple[Tensor, int]:
    """(cross-entropy in nats summed over the predicted positions of a batch, their number).

    Differentiable. Training uses `add_gradients`, which gives the same gradients in less memory.

    Args:
        positions_at_once: Number of positions whose logits exist at once; None: `chunk_length`.
    """
    with precision.autocast():
        predicted_PD = predicted_hidden(model.hidden_states, batch)
        loss_sum: Tensor = torch.zeros((), device=predicted_PD.device)
        at_once = positions_at_once or chunk_length(model, batch)
        for predicted_pD, labels_p in zip(
            torch.split(predicted_PD, at_once), torch.split(batch.labels_P, at_once), strict=True
        ):
            logits_pV = model.logits(predicted_pD)
            logits_pV = logits_pV.to(torch.promote_types(logits_pV.dtype, torch.float32))
            loss_sum = loss_sum + F.cross_entropy(logits_pV, labels_p, reduction="sum")
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
    """Forward and backward pass of one micro-batch: adds the gradients of its summed loss to `.grad` of all parameters.

    The vocabulary head runs forward and backward in chunks of positions, so only the logits of one chunk exist at a
    time; one backward pass through the body follows. Nothing waits for the device or depends on values, so it also
    runs on fake tensors.

    Args:
        scale: Factor on the gradients, for number formats that lose small ones.
        hidden_states: Replaces the method of the model, for example by its compiled form.
        span: Opens a stretch of the profile.
        before_last_backward: Called before the backward pass of the body, which completes all gradients.

    Returns:
        (summed loss in nats (fp64), auxiliary loss times the number of predicted tokens or None), both detached and
        unscaled. This weight turns the auxiliary loss into a mean when all is divided by the global count.
    """
    if isinstance(model, GivenModel):
        given_loss = add_given_gradients(
            model,
            batch,
            precision,
            scale=scale,
            hidden_states=hidden_states or model.hidden_states,
            positions_at_once=positions_at_once or chunk_length(model, batch),
            span=span,
            before_last_backward=before_last_backward,
        )
        return given_loss, None
    with precision.autocast(), span("forward"):
        features_PF = model.head_features(predicted_hidden(hidden_states or model.hidden_states, batch))
        auxiliary = model.auxiliary_loss()
        matrix_VF = model.vocabulary_matrix()
        dtype = compute_dtype(matrix_VF)
    loss_sum, gradient_PF = add_head_gradients(
        features_PF.detach(),
        matrix_VF,
        model.head_bias,
        batch.labels_P,
        dtype=dtype,
        scale=scale,
        positions_at_once=positions_at_once or chunk_length(model, batch),
        span=span,
    )
    weighted = None if auxiliary is None else auxiliary * batch.labels_P.numel()
    before_last_backward()
    # A caller may hold one autocast over many micro-batches, for its cache of cast weights; disable it for backward.
    with span("backward"), precision.autocast(enabled=False):
        # One call, so that every body parameter receives its gradient once and its exchange can start immediately.
        roots = [(features_PF, gradient_PF)]
        if weighted is not None:
            roots.append((weighted, torch.full_like(weighted, scale)))
        torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
    return loss_sum, None if weighted is None else weighted.detach()


def predicted_hidden(hidden_states: HiddenStates, batch: Batch) -> Tensor:
    """(P, D) hidden states at the predicted positions, the only input of the vocabulary head."""
    hidden_BTD = hidden_states(batch.inputs_BT, batch.document_ids_BT)
    return hidden_BTD.flatten(0, 1).index_select(0, batch.positions_P)


def chunk_length(model: LanguageModel, batch: Batch) -> int:
    """Number of positions whose logits exist at once.

    Chunks divide the predicted positions of full rows equally; otherwise a short last chunk would cost a whole pass
    over the matrix. They do not depend on the actual positions: with slightly fewer, one chunk less could be twice as
    long.
    """
    return max(1, math.ceil(batch.most_predicted / num_chunks(model, batch)))


def num_chunks(model: LanguageModel, batch: Batch) -> int:
    """Smallest number of chunks of positions whose logits need less memory than the activations of the body.

    Chunks of a frozen matrix are small: without a gradient of the matrix, an additional chunk costs no pass over it.
    """
    if isinstance(model, GivenModel):
        return chunks_of_a_class(model.vocabulary_size, batch.most_predicted) if model.has_two_halves else 1
    matrix_VD = model.vocabulary_matrix()
    vocabulary_size, width = matrix_VD.shape
    if not matrix_VD.requires_grad:
        return max(1, math.ceil(batch.most_predicted / max(1, _MIN_LOGITS_AT_ONCE // vocabulary_size)))
    num_layers = sum(isinstance(module, Attention) for module in model.modules())
    activation_bytes = _SAVED_BYTES_A_LAYER * batch.inputs_BT.numel() * width * num_layers
    logits_at_once = max(_MIN_LOGITS_AT_ONCE, activation_bytes // _BYTES_A_LOGIT)
    return max(1, math.ceil(batch.most_predicted / max(1, logits_at_once // vocabulary_size)))


def chunks_of_a_class(vocabulary_size: int, most_predicted: int) -> int:
    """Number of chunks of positions for the head of a user's class, whose activations are not known."""
    return max(1, math.ceil(most_predicted / max(1, _MIN_LOGITS_AT_ONCE // vocabulary_size)))
