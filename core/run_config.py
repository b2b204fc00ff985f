"""What one training run is: model, objective, training. Whatever changes the result is here."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, model_validator

from data_pipeline.settings import Count, Settings, Share


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
            raise ValueError(f"experts_per_token={self.experts_per_token} is above experts={self.experts}")
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
        """Keys of one half: the square root of the entries."""
        return math.isqrt(self.entries)

    @model_validator(mode="after")
    def _keys_are_pairs(self) -> Self:
        root = self.half_keys
        if root * root != self.entries:
            raise ValueError(
                f"entries={self.entries} is not a square number, and keys are pairs; try {root**2} or {(root + 1) ** 2}"
            )
        if self.entries_per_token > root:
            raise ValueError(
                f"entries_per_token={self.entries_per_token} is above the {root} half-keys of {self.entries} entries"
            )
        return self


class ModelConfig(Settings):
    """Shape of one transformer. Whatever changes the parameter count lives here, except the vocabulary."""

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
        """Whether a token sees only what is before it."""
        return self.family == "decoder"

    @property
    def num_positions(self) -> int:
        """Longest row the model can take."""
        return self.max_sequence_length or self.sequence_length

    @model_validator(mode="after")
    def _shape_is_possible(self) -> Self:
        faults = []
        if self.width % self.heads:
            nearest = -(-self.width // self.heads) * self.heads
            faults.append(f"width={self.width} is not a multiple of heads={self.heads}; try width={nearest}")
        elif (self.is_causal or self.form == "modern") and self.width // self.heads % 2:
            faults.append(
                f"width={self.width} over heads={self.heads} is an odd width of a head; rotary positions turn pairs"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            faults.append(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.kv_heads is not None and not self.is_causal:
            faults.append("kv_heads is for decoders; leave it out or say family: decoder")
        if self.num_positions < self.sequence_length:
            faults.append(
                f"max_sequence_length={self.max_sequence_length} is below sequence_length={self.sequence_length}"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self


class MaskedLMConfig(Settings):
    """Masked language modelling, 80/10/10 (BERT, arXiv:1810.04805)."""

    masking_rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of a row's maskable tokens that is predicted. Evaluation is always at 15 %."""


class CausalLMConfig(Settings):
    """Next-token prediction. Nothing to set."""


class SFTConfig(Settings):
    """Supervised fine-tuning on conversations: next-token prediction of the assistant's tokens. Nothing to set."""


class ClassificationConfig(Settings):
    """Telling classes of texts apart, on rows with labels (`pretune finetune --classify`)."""

    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    """Their names; a label is the place of one."""


class ObjectiveConfig(Settings):
    """What is predicted: exactly one of these."""

    masked_lm: MaskedLMConfig | None = None
    causal_lm: CausalLMConfig | None = None
    sft: SFTConfig | None = None
    classification: ClassificationConfig | None = None

    @property
    def masking_rate(self) -> float | None:
        """Share of tokens predicted in training; None for causal LM and classes."""
        return self.masked_lm.masking_rate if self.masked_lm else None

    @property
    def num_classes(self) -> int | None:
        """Classes that are told apart; None where tokens are predicted."""
        return len(self.classification.classes) if self.classification else None

    @model_validator(mode="before")
    @classmethod
    def _name_alone_means_defaults(cls, value: Any) -> Any:
        # `objective: causal_lm` and `objective: {causal_lm: }` both read well; both mean "with its defaults".
        if isinstance(value, str):
            value = {value: {}}
        if isinstance(value, dict) and len(value) == 1:
            value = {name: {} if settings is None else settings for name, settings in value.items()}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(one is not None for one in (self.masked_lm, self.causal_lm, self.sft, self.classification)) != 1:
            raise ValueError("give exactly one of masked_lm, causal_lm and sft")
        return self

    def fault_for(self, family: str) -> str | None:
        """Why a model of this family cannot have it; None if it can."""
        if (self.masked_lm is None and self.classification is None) == (family == "decoder"):
            return None
        return f"model.family={family} needs objective: {'causal_lm or sft' if family == 'decoder' else 'masked_lm'}"


def _absolute(path: str) -> str:
    # Once, where the user stands: workers have other working directories.
    return str(Path(path).expanduser().absolute())


def _joined(targets: Any) -> Any:
    # One text, so that a search may choose between several targets.
    names = targets.split(",") if isinstance(targets, str) else targets
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return ",".join(dict.fromkeys(name.strip() for name in names))
    return targets


class LoraConfig(Settings):
    """Low-rank adaptation (LoRA, arXiv:2106.09685): all weights stay as they are, and beside chosen matrices W a
    product of two thin ones is trained, so that the model computes with W + alpha / rank x B A."""

    rank: Count = 8
    """Rows of A, and columns of B."""
    alpha: PositiveFloat = 16.0
    """Over the rank, the factor on what is learnt."""
    targets: Annotated[str, BeforeValidator(_joined)] = "all-linear"
    """Matrices that are adapted: all-linear, attention, feed-forward, or names as transformers has them, such as
    [q_proj, v_proj]. Several names are also one text, for a search: "q_proj,v_proj"."""
    recompute_feed_forward: bool = True
    """Compute the inside of feed-forwards again in the backward pass: about half the memory, for less time than frozen
    weights save."""

    @property
    def scale(self) -> float:
        """Factor on the product of the two matrices."""
        return self.alpha / self.rank


class TrainingConfig(Settings):
    """How the parameters are moved."""

    batch_size: Count = 64
    """Sequences per optimizer step over all workers (global)."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Sequences per forward/backward on one worker. Changes speed and memory, never what is learnt."""
    tokens: Count | None = None
    """Tokens of training. A sweep says it as budget.tokens_per_trial."""
    epochs: PositiveFloat | None = None
    """Passes over the training rows; instead of tokens."""

    initial_weights: Annotated[str, AfterValidator(_absolute)] | None = None
    """Folder of a model to begin with, such as the best/ of a sweep or a trial's checkpoint: the next stage of a
    training, with longer rows for instance. Every worker reads it. None: weights are drawn at random."""
    lora: LoraConfig | None = None
    """Train low-rank adapters of the initial weights, and not the weights. None: all weights are trained."""

    learning_rate: PositiveFloat = 5e-4
    """Peak of the schedule."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """wsd: warm-up, stable, 1-sqrt cooldown (arXiv:2405.18392)."""
    warmup: Share = 0.02
    """Share of the tokens over which the learning rate rises."""
    cooldown: Share = 0.15
    """wsd: share of the tokens over which the learning rate falls to zero."""
    floor: Share = 0.0
    """cosine, linear: share of the peak that is left at the end."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """On matrices only."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    beta2_half_life_tokens: Count | None = None
    """Half-life of the second moment in tokens; instead of beta2, so that it holds for every batch size."""
    epsilon: PositiveFloat = 1e-8
    clip: PositiveFloat | None = 1.0
    """Largest global gradient norm. None: no clipping."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware computes it natively, else fp32."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    on_oom: Literal["shrink", "stop"] = "shrink"
    """shrink: go on with a smaller micro-batch, which changes nothing in what is learnt. stop: the run ends as
    infeasible, so that a micro-batch that is swept is judged as it is."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights, the order of rows and the masks."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        faults = []
        if self.tokens is not None and self.epochs is not None:
            faults.append("give tokens or epochs, not both")
        if self.warmup + (self.cooldown if self.schedule == "wsd" else 0) > 1:
            faults.append(f"warmup={self.warmup} and cooldown={self.cooldown} overlap; together they are at most 1")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class RunConfig(Settings):
    """One training run, whole."""

    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _objective_fits_family(self) -> Self:
        fault = self.objective.fault_for(self.model.family)
        if fault is not None:
            raise ValueError(fault)
        return self

    def with_overrides(self, overrides: dict[str, Any]) -> Self:
        """A copy with values at dotted paths (`training.learning_rate`) replaced; checked like a fresh one.

        Raises:
            pydantic.ValidationError: A value breaks a rule, or a path names no field.
        """
        raw = self.model_dump()
        for path, value in overrides.items():
            *parents, leaf = path.split(".")
            place = raw
            for name in parents:
                if place.get(name) is None:  # a section that is left out, of which one setting is given
                    place[name] = {}
                place = place[name]
            place[leaf] = value
        return type(self).model_validate(raw)
