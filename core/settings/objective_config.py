"""Objective of a run: masked LM, causal LM, supervised fine-tuning or classification."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from data_pipeline.schema.settings import Settings


class MaskedLMConfig(Settings):
    """Masked language modelling, 80/10/10 (BERT, arXiv:1810.04805)."""

    masking_rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of a row's maskable tokens that is predicted in training. BERT takes 0.15; large models gain from 0.4
    (arXiv:2202.08005). Evaluation is always at 15 %, so losses of different rates compare."""


class CausalLMConfig(Settings):
    """Next-token prediction. It has no settings."""


class SFTConfig(Settings):
    """Supervised fine-tuning on conversations: next-token prediction of the assistant's tokens. It has no settings."""


class ClassificationConfig(Settings):
    """Classification of texts, on rows with labels (`pretune finetune --classify`)."""

    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    """Names of the classes, at least two. A label is the position of its class here, from 0."""


class ObjectiveConfig(Settings):
    """The training objective: exactly one of these."""

    masked_lm: MaskedLMConfig | None = None
    """Predict masked tokens of a row from all others (BERT); for model.family: encoder."""
    causal_lm: CausalLMConfig | None = None
    """Predict each token from those before it; for model.family: decoder. It has no settings: objective: causal_lm."""
    sft: SFTConfig | None = None
    """Predict the assistant's tokens of conversations from those before them; for model.family: decoder. It has no
    settings: objective: sft."""
    classification: ClassificationConfig | None = None
    """Predict the class of a text. A sweep file cannot have it; a file of a fine-tuning has objective:
    classification."""

    @property
    def masking_rate(self) -> float | None:
        """Share of maskable tokens predicted in training; None unless the objective is masked LM."""
        return self.masked_lm.masking_rate if self.masked_lm else None

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for language modelling."""
        return len(self.classification.classes) if self.classification else None

    @model_validator(mode="before")
    @classmethod
    def _name_alone_means_defaults(cls, value: Any) -> Any:
        # `objective: causal_lm` and `objective: {causal_lm: }` both mean: with its defaults.
        if isinstance(value, str):
            value = {value: {}}
        if isinstance(value, dict) and len(value) == 1:
            value = {name: {} if settings is None else settings for name, settings in value.items()}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(one is not None for one in (self.masked_lm, self.causal_lm, self.sft, self.classification)) != 1:
            raise ValueError("an objective needs exactly one of masked_lm, causal_lm and sft; remove the others")
        return self

    def fault_for(self, family: str) -> str | None:
        """Error message if a model of this family cannot train this objective; None if it can."""
        if (self.masked_lm is None and self.classification is None) == (family == "decoder"):
            return None
        return f"model.family={family} needs objective: {'causal_lm or sft' if family == 'decoder' else 'masked_lm'}"
