"""Gradients of a user's class: its head is a function of its own, so autograd runs it.

Shape suffixes: B rows, T tokens a row, D width (on the simple path the vocabulary), N = B x T, P predicted positions, V
vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from core.layers.cache_blocks import blocks, has_cache_blocks
from core.models.given_class import GivenModel
from core.settings.precision import Precision
from core.step.step_profile import Span
from core.step.vocabulary_head import turn_into_gradient
from data_pipeline.tokens.batches import Batch

_LOGITS_IN_CACHE = 2**20
_AT_ONCE_ON_A_GPU = 2**24


def add_given_gradients(
    model: GivenModel,
    batch: Batch,
    precision: Precision,
    *,
    scale: float,
    hidden_states: Callable[[Tensor, Tensor | None], Tensor],
    positions_at_once: int,
    span: Span,
    before_last_backward: Callable[[], None],
) -> Tensor:
    """As `core.step.objectives.add_gradients`, for a user's class. Returns the summed loss in nats (fp64), detached.

    On the fast path logits exist for `positions_at_once` positions at a time. On the simple path the class has made all
    of them; their gradient is a second tensor of that size, because the class may need its own logits in its backward
    pass.
    """
    with precision.autocast(), span("forward"):
        body_BTD = hidden_states(batch.inputs_BT, batch.document_ids_BT)
    body_ND = body_BTD.detach().flatten(0, 1)
    gradient_ND = torch.zeros_like(body_ND)
    loss_sum = torch.zeros((), dtype=torch.float64, device=body_ND.device)
    if model.has_two_halves:
        for chunk in blocks(batch.labels_P.numel(), positions_at_once):
            positions_p = batch.positions_P[chunk]
            with precision.autocast(), span("forward"):
                leaf_pD = body_ND.index_select(0, positions_p).requires_grad_()
                logits_pV = model.logits(leaf_pD)
            with torch.no_grad(), span("forward"):
                gradient_pV = logits_pV.detach().clone()
                loss_sum += turn_into_gradient(gradient_pV, batch.labels_P[chunk], None, scale)
            with span("backward"), precision.autocast(enabled=False), model.errors_placed(f"{_name(model)}.backward"):
                torch.autograd.backward([logits_pV], [gradient_pV])
            del logits_pV, gradient_pV
            if leaf_pD.grad is not None:
                gradient_ND.index_copy_(0, positions_p, leaf_pD.grad)
    else:
        at_once = _LOGITS_IN_CACHE if has_cache_blocks(body_ND.device) else _AT_ONCE_ON_A_GPU
        with torch.no_grad(), span("forward"):
            for chunk in blocks(batch.labels_P.numel(), at_once // model.vocabulary_size):
                positions_p = batch.positions_P[chunk]
                gradient_pV = body_ND.index_select(0, positions_p)
                loss_sum += turn_into_gradient(gradient_pV, batch.labels_P[chunk], None, scale)
                gradient_ND.index_copy_(0, positions_p, gradient_pV)
                del gradient_pV
    del body_ND
    before_last_backward()
    if body_BTD.requires_grad:  # A class may train its head alone.
        with span("backward"), precision.autocast(enabled=False), model.errors_placed(f"{_name(model)}.backward"):
            torch.autograd.backward([body_BTD], [gradient_ND.view_as(body_BTD)])
    return loss_sum


def _name(model: GivenModel) -> str:
    return model.code.class_name
