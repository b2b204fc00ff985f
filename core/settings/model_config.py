"""Shape of a transformer, or the user's class that is trained in place of one."""

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from data_pipeline.schema.settings import Count, Settings, younger


class MixtureConfig(Settings):
    """Mixture of experts: top-k routing with an auxiliary balance loss (Switch, arXiv:2101.03961)."""

    experts: Count = 4
    """Routed experts in each layer. All of them take memory; a token passes only experts_per_token of them."""
    experts_per_token: Count = 2
    """Routed experts that each token passes; at most experts. Two is usual (Mixtral, arXiv:2401.04088)."""
    shared_experts: Annotated[int, Field(ge=0)] = 1
    """Further experts in each layer that every token passes (DeepSeekMoE, arXiv:2401.06066)."""
    balance_weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the balance loss in the objective. 0 leaves the router free, and a few experts may then take all
    tokens. Switch Transformers uses 0.01 (arXiv:2101.03961)."""

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
    """Values in the table, which all layers share; a square number, for keys are pairs. The table holds
    entries x width parameters."""
    heads: Count = 4
    """Queries that each token sends to the table; their results are added. Four in the paper (arXiv:1907.05242)."""
    entries_per_token: Count = 32
    """Values that each head reads for each token; at most the square root of entries. The paper takes 32."""

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


class Arguments(dict[str, Any]):
    """Arguments of a user's class, as JSON values. They are not changed, so they have a hash."""

    def __hash__(self) -> int:  # type: ignore[override]  # A dict has none, because it may change.
        return hash(json.dumps(self, sort_keys=True))


_OF_A_CLASS = ("class_", "arguments", "class_digest", "allow_batch_statistics")
_BESIDE_A_CLASS = frozenset({*_OF_A_CLASS, "family", "sequence_length"})
"""Settings that a user's class leaves to the file; all others are the form of our own models."""


class ModelConfig(Settings):
    """Shape of one transformer: everything that sets the parameter count, except the vocabulary size."""

    class_: str | None = Field(default=None, alias="class")
    """Class of your own that is trained in place of our forms: package.module:Class, or file.py:Class beside the sweep
    file. Its code runs only with trust_code: true or --allow-code. Of the other settings of a model only
    sequence_length is allowed beside it. null: one of our forms."""
    arguments: Annotated[dict[str, JsonValue], AfterValidator(Arguments)] = Field(default_factory=dict)
    """Arguments of the class, by name: its constructor receives vocabulary_size and these. Each may be swept, as
    model.arguments.width."""
    class_digest: str | None = None
    """SHA-256 of the source of the class. pretune fills it in: a changed class is another sweep. Do not write it."""
    allow_batch_statistics: bool = False
    """true: train a class whose layers mix the rows of a micro-batch (BatchNorm). Its loss then depends on the
    micro-batch. false: such a class is refused."""

    family: Literal["encoder", "decoder"] = "encoder"
    """encoder: masked LM, every token sees its whole row. decoder: causal LM in Llama's form (pre-norm, rotary
    positions, RMS norms, no biases)."""

    form: Literal["roberta", "modern"] = "roberta"
    """Encoders only. roberta: post-norm, learned positions. modern: pre-norm, rotary positions, gated GELU, no
    biases."""

    layers: Count = 4
    """Transformer blocks, one after another. Parameters and operations grow in proportion. At equal parameters the loss
    depends little on layers against width (arXiv:2001.08361)."""
    width: Count = 256
    """Numbers in the vector of a token (the residual stream); a multiple of heads. Parameters grow with its square."""
    heads: Count = 4
    """Attention heads of each layer. Each is width / heads numbers wide: 32 in small models and 64 in larger ones are
    usual."""
    kv_heads: Count | None = None
    """Key/value heads of a decoder (grouped-query attention, arXiv:2305.13245); heads is a multiple of it. Fewer save
    memory when text is generated. null: as many as heads."""

    feed_forward: Literal["auto", "gelu", "geglu", "swiglu", "moe", "memory", "none"] = "auto"
    """Feed-forward part of each layer. gelu: two matrices. geglu, swiglu: gated, three matrices (arXiv:2002.05202).
    moe: a mixture of experts, set by mixture. memory: a product-key memory, set by memory. none: attention only. auto:
    gelu for roberta, geglu for modern, swiglu for decoders."""
    feed_forward_width: Count | None = None
    """Numbers in the hidden vector of the feed-forward. null: 4 x width for gelu; 8/3 x width, rounded up to a multiple
    of 64, for gated forms. Both give the same parameters."""
    equal_in: Literal["parameters", "flops"] | None = None
    """For a fair comparison of feed-forwards: this model is made equal, in parameters or in operations a token, to the
    same model with feed_forward: auto. The feed-forward's width is chosen for that, or the memory's entries, or else
    the layers. null: the model is as the file has it."""
    mixture: MixtureConfig = MixtureConfig()
    """Mixture of experts; for feed_forward: moe."""
    memory: MemoryLayerConfig = MemoryLayerConfig()
    """Product-key memory; for feed_forward: memory."""

    sequence_length: Count = 128
    """Tokens in a row of training. Activations grow in proportion, and the time of attention with the square."""
    max_sequence_length: Count | None = None
    """Tokens in the longest row that the model can take (learned positions); at least sequence_length. null:
    sequence_length."""
    rotary_base: PositiveFloat = 10_000.0
    """Base of the rotary position frequencies; decoders and form: modern. 10,000 is for rows of a few thousand tokens
    (arXiv:2104.09864); longer rows take more, as 500,000 (Llama 3, arXiv:2407.21783)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of activations set to zero in training: of embeddings, attention weights and the output of each part. 0 is
    usual where a text is read once; 0.1 where it is read many times (BERT, arXiv:1810.04805)."""
    norm_epsilon: PositiveFloat = 1e-5
    """Number added to the variance in each norm, against division by zero. 1e-5 is usual; 1e-6 and 1e-12 (BERT) also
    occur. It hardly changes a loss."""
    tied_embeddings: bool = True
    """true: the matrix that predicts tokens is the embedding of tokens (arXiv:1608.05859), which saves
    vocabulary x width parameters: often most of a small model. false: each has its own."""

    parametrization: Annotated[Literal["standard", "mup"], younger("standard")] = "standard"
    """Scale of initial weights and of learning rates. standard: the same at every width. mup: relative to a base, so
    that the best learning rate of a narrow model is that of a wide one with heads of the same width
    (arXiv:2203.03466); attention scores then need no factor. At the base's width both are equal."""
    mup_base_width: Annotated[Count, younger(128)] = 128
    """mup only: width of the base, at which mup equals standard. Choose the width of the models that are swept."""
    mup_base_layers: Annotated[Count | None, younger(None)] = None
    """mup only, pre-norm models: layers of the base; the branches of a deeper model count less in proportion, so that
    the learning rate transfers across layers too (CompleteP, arXiv:2505.01618). null: layers are not scaled."""

    def in_standard_form(self) -> Self:
        """The same shape without mup, which changes how weights are trained and not what they compute."""
        fields = type(self).model_fields
        names = ("parametrization", "mup_base_width", "mup_base_layers")
        return self.model_copy(update={name: fields[name].default for name in names})

    @property
    def is_causal(self) -> bool:
        """True if a token attends only to itself and earlier tokens."""
        return self.family == "decoder"

    @property
    def num_positions(self) -> int:
        """Maximum length of a row in tokens."""
        return self.max_sequence_length or self.sequence_length

    @model_serializer(mode="wrap")
    def _only_settings_that_count(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A class has no form of ours, and our forms have no class: dumps of before stay as they are.
        dumped: dict[str, Any] = handler(self)
        if self.class_ is None:
            return {name: value for name, value in dumped.items() if name not in _OF_A_CLASS}
        kept = {name: value for name, value in dumped.items() if name in _BESIDE_A_CLASS}
        return {"class" if name == "class_" else name: value for name, value in kept.items()}

    @model_validator(mode="after")
    def _class_stands_alone(self) -> Self:
        given = self.model_fields_set
        if self.class_ is None:
            alone = [name for name in _OF_A_CLASS if name in given and getattr(self, name)]
            if alone:
                raise ValueError(f"{', '.join(alone)} needs model.class; give the class, or remove {alone[0]}")
            return self
        forms = sorted(given - _BESIDE_A_CLASS)
        if forms:
            raise ValueError(
                f"{', '.join(forms)} {'is' if len(forms) == 1 else 'are'} of our own forms, and model.class="
                f"{self.class_} has its own; remove {'it' if len(forms) == 1 else 'them'}, or write "
                f"arguments: {{{forms[0]}: ..}}"
            )
        return self

    @model_validator(mode="after")
    def _shape_is_possible(self) -> Self:
        if self.class_ is not None:
            return self
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
        if self.parametrization == "mup":
            faults += self._faults_of_mup()
        if self.num_positions < self.sequence_length:
            faults.append(
                f"max_sequence_length={self.max_sequence_length} is below sequence_length={self.sequence_length}; "
                "raise it, or remove it to use sequence_length"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _faults_of_mup(self) -> Iterator[str]:
        if self.feed_forward == "memory":
            yield "parametrization=mup has no rule for feed_forward=memory; use parametrization: standard"
        if self.mup_base_layers is not None and not self.is_causal and self.form == "roberta":
            yield (
                f"mup_base_layers={self.mup_base_layers} scales the branches of pre-norm layers, and form=roberta has "
                "post-norm ones; remove it, or use form: modern"
            )
