"""Shape of a transformer."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from data_pipeline.schema.settings import Count, Settings


class MixtureConfig(Settings):
    """Mixture of experts: top-k routing with an auxiliary balance loss (Switch, arXiv:2101.03961)."""

    experts: Count = 4
    """Routed experts a layer."""
    experts_per_token: Count = 2
    shared_experts: Annotated[int, Field(ge=0)] = 1
    """Experts that every token passes."""
    balance_weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the balance loss in the objective."""

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} is above experts={self.experts}; lower it or add experts"
            )
        return self


class MemoryLayerConfig(Settings):
    """Product-key memory (arXiv:1907.05242) in place of the feed-forward."""

    entries: Count = 1_048_576
    """Values in the table; a square number, for keys are pairs."""
    heads: Count = 4
    entries_per_token: Count = 32
    """Values read by each head for each token."""

    @property
    def half_keys(self) -> int:
        """Number of half-keys: the square root of the entries."""
        return math.isqrt(self.entries)

    @model_validator(mode="after")
    def _keys_are_pairs(self) -> Self:
        root = self.half_keys
        if root * root != self.entries:
            raise ValueError(
                f"entries={self.entries} is not a square number, which pairs of half-keys need; try {root**2} or "
                f"{(root + 1) ** 2}"
            )
        if self.entries_per_token > root:
            raise ValueError(
                f"entries_per_token={self.entries_per_token} is above the {root} half-keys of {self.entries} entries; "
                f"use at most {root}"
            )
        return self


class ModelConfig(Settings):
    """Shape of one transformer: everything that sets the parameter count, except the vocabulary size."""

    family: Literal["encoder", "decoder"] = "encoder"
    """encoder: masked LM, every token sees its whole row. decoder: causal LM in Llama's form."""

    form: Literal["roberta", "modern"] = "roberta"
    """Encoders only. roberta: post-norm, learned positions. modern: pre-norm, rotary, gated GELU, no biases."""

    layers: Count = 4
    width: Count = 256
    """Width of the residual stream; a multiple of heads."""
    heads: Count = 4
    kv_heads: Count | None = None
    """Key/value heads of a decoder (grouped-query attention). None: as many as heads."""

    feed_forward: Literal["auto", "gelu", "geglu", "swiglu", "moe", "memory", "none"] = "auto"
    """auto: gelu for roberta, geglu for modern, swiglu for decoders."""
    feed_forward_width: Count | None = None
    """None: 4 x width for gelu; 8/3 x width rounded up to a multiple of 64 for gated forms."""
    equal_in: Literal["parameters", "flops"] | None = None
    """Make this model equal to the same one with its family's own feed-forward, in parameters or in operations a token:
    the feed-forward's width, or the memory's entries, or else the layers are chosen for that. For comparing
    feed-forwards. None: everything is as said."""
    mixture: MixtureConfig = MixtureConfig()
    memory: MemoryLayerConfig = MemoryLayerConfig()

    sequence_length: Count = 128
    """Tokens in a row of training."""
    max_sequence_length: Count | None = None
    """Longest row the model can take (learned positions). None: sequence_length."""
    rotary_base: PositiveFloat = 10_000.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    norm_epsilon: PositiveFloat = 1e-5
    tied_embeddings: bool = True

    @property
    def is_causal(self) -> bool:
        """True if a token attends only to itself and earlier tokens."""
        return self.family == "decoder"

    @property
    def num_positions(self) -> int:
        """Maximum length of a row in tokens."""
        return self.max_sequence_length or self.sequence_length

    @model_validator(mode="after")
    def _shape_is_possible(self) -> Self:
        faults = []
        if self.width % self.heads:
            nearest = -(-self.width // self.heads) * self.heads
            faults.append(f"width={self.width} is not a multiple of heads={self.heads}; try width={nearest}")
        elif (self.is_causal or self.form == "modern") and self.width // self.heads % 2:
            faults.append(
                f"width={self.width} / heads={self.heads} is odd, but rotary positions need an even width per head; "
                f"try width={(self.width // self.heads + 1) * self.heads}"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            faults.append(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; use a divisor of {self.heads}"
            )
        if self.kv_heads is not None and not self.is_causal:
            faults.append(f"kv_heads={self.kv_heads} is for decoders only; remove it or set family: decoder")
        if self.num_positions < self.sequence_length:
            faults.append(
                f"max_sequence_length={self.max_sequence_length} is below sequence_length={self.sequence_length}; "
                "raise it, or remove it to use sequence_length"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self
