"""Feature vectors of texts: the hidden states of the last layer, pooled to one vector per text.

Shape suffixes: B rows, T tokens a row, D width.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.models.given_class import GivenModel
from core.models.language_model import LanguageModel

Pooling = Literal["mean", "first", "last"]
"""mean: over all tokens of the text, begin and end tokens included. first: the first token, which classifiers use.
last: the last token, the only one of a decoder that sees the whole text."""


def why_not_pooled(model: LanguageModel, pooling: Pooling) -> str | None:
    """Error message if a pooling is meaningless for this model; None if it is valid."""
    if isinstance(model, GivenModel) and not model.has_two_halves:
        return (
            f"{model.code.class_name} gives logits alone; add hidden_states(input_ids, document_ids) and logits(hidden)"
        )
    if pooling == "first" and model.is_causal:
        return "the first token of a decoder has seen nothing of the text; use last or mean"
    return None


@torch.no_grad()
def width_of(model: LanguageModel) -> int:
    """Numbers in a feature vector of this model."""
    if not isinstance(model, GivenModel):
        return model.tokens.embedding_dim
    device = next(model.parameters()).device
    return model.hidden_states(torch.zeros(1, 1, dtype=torch.int64, device=device)).shape[-1]


def ids_of(model: LanguageModel) -> int:
    """Number of token ids that this model takes."""
    return model.vocabulary_size if isinstance(model, GivenModel) else model.tokens.num_embeddings


@torch.no_grad()
def features(
    model: LanguageModel, rows: Sequence[NDArray[Any]], *, pooling: Pooling, pad_id: int
) -> NDArray[np.float32]:
    """(B, D) fp32 feature vector of each row; independent of the other rows of the batch up to rounding.

    Args:
        model: In evaluation mode.
        rows: Token ids of each text, `<s> .. </s>`, at most the model's maximum length.
        pad_id: Id of the padding token.
    """
    device = next(model.parameters()).device
    inputs_BT = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.int64)
    for number, row in enumerate(rows):
        inputs_BT[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    # Padding comes last: encoders mask it, and earlier tokens of a decoder cannot see it.
    hidden_BTD = model.hidden_states(inputs_BT.to(device)).float()
    found: NDArray[np.float32] = _pooled(hidden_BTD, lengths_B, pooling).cpu().numpy()
    return found


def _pooled(hidden_BTD: Tensor, lengths_B: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "first":
        return hidden_BTD[:, 0]
    if pooling == "last":
        return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), lengths_B - 1]
    is_real_BT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device) < lengths_B[:, None]
    # fp64 hides the order of addition, which padding changes.
    sums_BD = (hidden_BTD.double() * is_real_BT[:, :, None]).sum(dim=1)
    return (sums_BD / lengths_B[:, None]).float()
