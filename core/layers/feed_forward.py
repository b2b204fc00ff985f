"""Feed-forwards of a layer, applied to each token separately: gelu, geglu, swiglu, moe, memory, none.

Shape suffixes: B rows, T tokens a row, D width, F width inside the feed-forward.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.layers.gated_activation import Activation, gated
from core.layers.mixture import Mixture
from core.layers.product_key_memory import ProductKeyMemory, Values
from core.layers.transformer_parts import Linear
from core.settings.model_config import ModelConfig

FeedForwardResult = tuple[Tensor, Tensor | None]
"""(summand of the residual stream, balance loss of a mixture or None)."""


class Plain(nn.Module):
    """Two linear layers with GELU between them (BERT, GPT)."""

    def __init__(self, width: int, inner_width: int, *, bias: bool) -> None:
        super().__init__()
        self.up = Linear(width, inner_width, bias=bias)
        self.down = Linear(inner_width, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> FeedForwardResult:
        return self.down(F.gelu(self.up(x_BTD))), None


class Gated(nn.Module):
    """A linear layer multiplied by an activated gate (arXiv:2002.05202); one matrix holds both, the gate first."""

    def __init__(self, width: int, inner_width: int, *, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.gate_and_up = Linear(width, 2 * inner_width, bias=bias)
        self.down = Linear(inner_width, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> FeedForwardResult:
        return self.down(gated(self.gate_and_up(x_BTD), self.activation)), None


class TransformerLayer(nn.Module):
    """Base class of the layers of all models."""

    recomputes_feed_forward = False
    """True: recompute the inner activations of the feed-forward in the backward pass instead of keeping them."""

    def through_feed_forward(self, inside: Callable[[Tensor], FeedForwardResult], x_BTD: Tensor) -> FeedForwardResult:
        """Apply the feed-forward `inside` to the residual stream, with recomputation if it is enabled."""
        if self.recomputes_feed_forward and self.training:
            result: FeedForwardResult = checkpoint(inside, x_BTD, use_reentrant=False)
            return result
        return inside(x_BTD)


def feed_forward_kind(config: ModelConfig) -> str:
    """The kind of feed-forward of this model, with `auto` resolved."""
    if config.feed_forward != "auto":
        return config.feed_forward
    if config.is_causal:
        return "swiglu"
    return "gelu" if config.form == "roberta" else "geglu"


def inner_width(config: ModelConfig) -> int:
    """Inner width of the feed-forward: as set, or 4 x width for gelu and 8/3 x width, rounded up to a multiple of 64,
    for gated forms, so that both have about the same number of weights."""
    if config.feed_forward_width is not None:
        return config.feed_forward_width
    if feed_forward_kind(config) == "gelu":
        return 4 * config.width
    return -(-8 * config.width // (3 * 64)) * 64


def build_feed_forwards(config: ModelConfig) -> list[nn.Module | None]:
    """The feed-forward module of each layer; None for models without one.

    The `forward` of a module returns a `FeedForwardResult`.
    """
    layers: list[nn.Module | None] = []
    values: Values | None = None
    for _ in range(config.layers):
        if feed_forward_kind(config) == "memory":
            memory = ProductKeyMemory(config.width, config.memory, values=values)
            values = memory.table
            layers.append(memory)
        else:
            layers.append(_build_feed_forward(config))
    return layers


def _build_feed_forward(config: ModelConfig) -> nn.Module | None:
    has_bias = not config.is_causal and config.form == "roberta"
    width, inner = config.width, inner_width(config)
    match feed_forward_kind(config):
        case "none":
            return None
        case "gelu":
            return Plain(width, inner, bias=has_bias)
        case "geglu":
            return Gated(width, inner, activation="gelu", bias=has_bias)
        case "swiglu":
            return Gated(width, inner, activation="silu", bias=has_bias)
        case "moe":
            return Mixture(width, inner, config.mixture, activation="silu" if config.is_causal else "gelu")
        case kind:
            raise ValueError(
                f"model.feed_forward={kind} is unknown; use auto, gelu, geglu, swiglu, moe, memory or none"
            )
