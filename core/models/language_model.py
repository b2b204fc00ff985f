"""Interface of all models to the training loop.

Shape suffixes: B rows, T tokens a row, D width, P selected positions, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.layers.feed_forward import TransformerLayer
from core.layers.transformer_parts import Embedding, RowLayout


@dataclass(frozen=True)
class Scaling:
    """Factors on the settings of the optimizer for one parameter; see `core.models.width_transfer`."""

    rate: float = 1.0
    """On the learning rate of AdamW. Weight decay takes the inverse, so that a step shrinks a matrix as before."""
    muon_rate: float = 1.0
    """On the learning rate of Muon, with weight decay as above."""
    epsilon: float = 1.0
    """On the epsilon of AdamW."""


class LanguageModel(nn.Module):
    """A transformer in two halves: hidden states for all tokens, logits for selected positions.

    The halves are separate because the vocabulary head of a small model costs as much as its layers, and masked LM
    needs it at about one position in seven.
    """

    is_causal: bool = False
    """True if a token sees only itself and earlier ones, so the model can continue a text."""
    layers: nn.ModuleList
    """`TransformerLayer` modules."""
    tokens: Embedding
    """Token embeddings."""
    head_weight: Tensor | None
    """Vocabulary matrix of the head. None: that of the embeddings (tied)."""
    head_bias: Tensor | None
    """(V,) bias of the logits. None: no bias."""

    def __init__(self) -> None:
        super().__init__()
        self._uses_checkpointing = False
        self._recomputes_feed_forward = False
        self._balance_loss: Tensor | None = None
        self.scalings: dict[str, Scaling] = {}
        """Factors by parameter name, of a model with mup. Others have factors of one."""

    def hidden_states(self, inputs_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """(B, T, D) hidden states before the vocabulary head.

        Args:
            inputs_BT: Token ids, int64.
            document_ids_BT: Document of each token within its row. Tokens attend only to their own document, and
                positions restart at each document. None: a row is one document.
        """
        raise NotImplementedError

    def head_features(self, hidden_PD: Tensor) -> Tensor:
        """(P, D) features that the vocabulary matrix multiplies. Any leading shape is allowed."""
        raise NotImplementedError

    def vocabulary_matrix(self) -> Tensor:
        """(V, D) matrix of the vocabulary head."""
        return self.tokens.weight if self.head_weight is None else self.head_weight

    def logits(self, hidden_PD: Tensor) -> Tensor:
        """(P, V) logits of the token at each given position (masked LM) or after it (causal LM). Any leading shape is
        allowed."""
        return F.linear(self.head_features(hidden_PD), self.vocabulary_matrix(), self.head_bias)

    def forward(self, inputs_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """(B, T, V) logits at every position. Convenient but wasteful: training selects positions first."""
        return self.logits(self.hidden_states(inputs_BT, document_ids_BT))

    def auxiliary_loss(self) -> Tensor | None:
        """Weighted balance loss of the last `hidden_states`, a mean over its rows, to be added to the mean loss. Over
        micro-batches, weight it by their rows. None for models without a mixture of experts."""
        return self._balance_loss

    def forget_auxiliary_loss(self) -> None:
        """Release the last balance loss, whose graph holds the activations of its pass."""
        self._balance_loss = None

    def set_activation_checkpointing(self, is_on: bool) -> None:
        """Recompute the activations of each layer in the backward pass instead of keeping them."""
        self._uses_checkpointing = is_on
        self._tell_layers()

    def set_recomputed_feed_forward(self, is_on: bool) -> None:
        """Recompute the inner activations of feed-forwards, the widest of a layer, in the backward pass instead of
        keeping them. No effect with activation checkpointing."""
        self._recomputes_feed_forward = is_on
        self._tell_layers()

    def num_parameters(self) -> int:
        """Number of parameters; shared ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def num_trainable_parameters(self) -> int:
        """Number of parameters that training changes: all, unless weights are frozen."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def _tell_layers(self) -> None:
        for layer in self.layers:
            assert isinstance(layer, TransformerLayer)
            layer.recomputes_feed_forward = self._recomputes_feed_forward and not self._uses_checkpointing

    def through_layers(self, layers: Iterable[nn.Module], x_BTD: Tensor, layout: RowLayout) -> Tensor:
        """The residual stream after all layers; stores the sum of their balance losses."""
        balance_losses: list[Tensor] = []
        for layer in layers:
            if self._uses_checkpointing and self.training:
                x_BTD, balance_loss = checkpoint(layer, x_BTD, layout, use_reentrant=False)
            else:
                x_BTD, balance_loss = layer(x_BTD, layout)
            if balance_loss is not None:
                balance_losses.append(balance_loss)
        self._balance_loss = sum(balance_losses[1:], start=balance_losses[0]) if balance_losses else None
        return x_BTD
