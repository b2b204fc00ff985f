"""Feature vectors of texts: what a model's last layer says of them, as one vector a text.

Shape suffixes: B rows, T tokens a row, D width.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.models.decoder import LlamaDecoder
from core.models.language_model import LanguageModel

Pooling = Literal["mean", "first", "last"]
"""mean: over all tokens of the text, those that begin and end it included. first: of the token that begins it, which is
what classifiers look at. last: of its last token, the only one of a decoder that has seen all of the text."""


def why_not_pooled(model: LanguageModel, pooling: Pooling) -> str | None:
    """Why a pooling says nothing of a text with this model; None: it does."""
    if pooling == "first" and isinstance(model, LlamaDecoder):
        return "the first token of a decoder has seen nothing of the text; take last or mean"
    return None


@torch.no_grad()
def features(
    model: LanguageModel, rows: Sequence[NDArray[Any]], *, pooling: Pooling, pad_id: int
) -> NDArray[np.float32]:
    """(B, D) a vector for each row of token ids; what else is in the batch does not change it but by rounding.

    Args:
        model: In evaluation mode.
        rows: Token ids of each text, `<s> .. </s>`, none longer than the model takes.
    """
    device = model.tokens.weight.device
    inputs_BT = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.int64)
    for place, row in enumerate(rows):
        inputs_BT[place, : len(row)] = torch.from_numpy(row.astype(np.int64))
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    # Padding comes after all that is real: an encoder hides it, and nothing real in a decoder can see it.
    hidden_BTD = model.hidden_states(inputs_BT.to(device)).float()
    found: NDArray[np.float32] = _pooled(hidden_BTD, lengths_B, pooling).cpu().numpy()
    return found


def _pooled(hidden_BTD: Tensor, lengths_B: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "first":
        return hidden_BTD[:, 0]
    if pooling == "last":
        return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), lengths_B - 1]
    is_real_BT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device) < lengths_B[:, None]
    # In fp64: the order of adding, which the padding changes, then does not show.
    sums_BD = (hidden_BTD.double() * is_real_BT[:, :, None]).sum(dim=1)
    return (sums_BD / lengths_B[:, None]).float()
