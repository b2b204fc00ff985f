"""Models that differ in their feed-forward, made equal in parameters or in floating-point operations a token.

A comparison of feed-forwards (system B's `model_original`, `model`, `model_no_feed`, `use_moe`) says nothing while one
of the models is larger. What gives way is what the feed-forward is made of: its width, or that of the experts; the
entries of a memory; and the number of layers where there is nothing else to change.
"""

from collections.abc import Callable
from functools import lru_cache

import torch

from core.layers.feed_forward import feed_forward_kind, inner_width
from core.models.model_factory import build_model
from core.settings.model_config import ModelConfig

_WIDTH_STEP = 8
"""Widths are a multiple of this, as grouped products in bf16 need it."""


@lru_cache(maxsize=256)
def equalized(config: ModelConfig) -> ModelConfig:
    """The model with `equal_in` carried out, as near as whole widths, entries and layers come.

    Its equal is the same model with its family's own feed-forward. Unchanged where `equal_in` is None.
    """
    if config.equal_in is None:
        return config
    measure = num_parameters if config.equal_in == "parameters" else flops_a_token
    plain = config.model_copy(update={"equal_in": None})
    target = measure(plain.model_copy(update={"feed_forward": "auto"}))

    def nearest(change: Callable[[int], ModelConfig], first: int) -> ModelConfig:
        return change(_nearest(lambda size: measure(change(size)), target, first))

    match feed_forward_kind(plain):
        case "none":
            return nearest(lambda layers: _with(plain, layers=layers), 1)
        case "memory" if config.equal_in == "flops":
            # More entries cost hardly any operations, so they stay as they are.
            return nearest(lambda layers: _with(plain, layers=layers), 1)
        case "memory":
            return nearest(
                lambda root: _with(plain, memory=plain.memory.model_copy(update={"entries": root * root})),
                plain.memory.entries_per_token,
            )
        case _:
            return nearest(lambda steps: _with(plain, feed_forward_width=_WIDTH_STEP * steps), 1)


def num_parameters(config: ModelConfig) -> int:
    """Parameters besides the vocabulary's, which the feed-forward does not change."""
    with torch.device("meta"):
        model = build_model(config, vocabulary_size=8)
    return model.num_parameters() - 8 * config.width


def flops_a_token(config: ModelConfig) -> float:
    """Floating-point operations of the matrix products of the forward pass for one token, without the vocabulary head.

    Attention is taken over full rows; a token of a causal model sees half of its row on average.
    """
    width, length = config.width, config.sequence_length
    head_width = width // config.heads
    seen = (length + 1) / 2 if config.is_causal else length
    projections = width * (config.heads + 2 * (config.kv_heads or config.heads)) * head_width + width * width
    attention = projections + 2 * seen * width
    return 2.0 * config.layers * (attention + _multiplications_of_feed_forward(config))


def _multiplications_of_feed_forward(config: ModelConfig) -> float:
    width, inner = config.width, inner_width(config)
    match feed_forward_kind(config):
        case "none":
            return 0.0
        case "gelu":
            return 2.0 * width * inner
        case "moe":
            mixture = config.mixture
            experts = mixture.experts_per_token + mixture.shared_experts
            return width * mixture.experts + experts * 3.0 * width * inner
        case "memory":
            memory = config.memory
            halves = 2 * memory.heads * -(-width // (2 * memory.heads))
            return halves * (width + memory.half_keys) + memory.heads * memory.entries_per_token * width
        case _:
            return 3.0 * width * inner


def _nearest(measure: Callable[[int], float], target: float, first: int) -> int:
    """The size from `first` on whose measure, which grows with it, is nearest to the target."""
    low, high = first, first + 1
    while measure(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle) < target else (low, middle)
    return min((low, high), key=lambda size: abs(measure(size) - target))


def _with(config: ModelConfig, **changes: object) -> ModelConfig:
    return config.model_copy(update=changes)
