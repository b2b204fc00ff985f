"""Match models with different feed-forwards in parameters or in floating-point operations per token.

A comparison of feed-forwards (system B's `model_original`, `model`, `model_no_feed`, `use_moe`) is meaningful only
between models of equal size. The matched quantity is the width of the feed-forward or its experts, the number of
entries of a memory, or, without any of these, the number of layers.
"""

from collections.abc import Callable
from functools import lru_cache

from core.layers.feed_forward import feed_forward_kind, inner_width
from core.models.model_factory import build_model, without_values
from core.settings.model_config import ModelConfig

_WIDTH_STEP = 8
"""Widths are multiples of this number, which grouped products in bf16 require."""


@lru_cache(maxsize=256)
def equalized(config: ModelConfig) -> ModelConfig:
    """The settings with `equal_in` applied, as closely as whole widths, entries and layers allow.

    The reference is the same model with the default feed-forward of its family. Without `equal_in`, nothing changes.
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
            # More entries cost almost no operations, so change the layers instead.
            return nearest(lambda layers: _with(plain, layers=layers), 1)
        case "memory":
            return nearest(
                lambda root: _with(plain, memory=plain.memory.model_copy(update={"entries": root * root})),
                plain.memory.entries_per_token,
            )
        case _:
            return nearest(lambda steps: _with(plain, feed_forward_width=_WIDTH_STEP * steps), 1)


def num_parameters(config: ModelConfig) -> int:
    """Number of parameters without those of the vocabulary."""
    with without_values():
        model = build_model(config, vocabulary_size=8)
    return model.num_parameters() - 8 * config.width


def flops_a_token(config: ModelConfig) -> float:
    """Floating-point operations per token of the forward pass: matrix products, without the vocabulary head.

    Attention counts full rows; a token of a causal model sees half of its row on average.
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
    """The size >= `first` whose measure is nearest to the target; the measure must increase with the size."""
    low, high = first, first + 1
    while measure(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle) < target else (low, middle)
    return min((low, high), key=lambda size: abs(measure(size) - target))


def _with(config: ModelConfig, **changes: object) -> ModelConfig:
    return config.model_copy(update=changes)
