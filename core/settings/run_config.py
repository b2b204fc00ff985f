"""Settings of one training run: model, objective, training. Every setting that changes the result is here."""

from collections.abc import Iterator
from typing import Any, Self

from pydantic import model_validator

from core.settings.model_config import ModelConfig
from core.settings.objective_config import ObjectiveConfig
from core.settings.training_config import WITH_MUP, TrainingConfig
from data_pipeline.schema.dotted_paths import set_at
from data_pipeline.schema.settings import Settings


class RunConfig(Settings):
    """All settings of one training run."""

    model: ModelConfig = ModelConfig()
    """Shape of the transformer."""
    objective: ObjectiveConfig
    """Tokens or classes that are predicted."""
    training: TrainingConfig = TrainingConfig()
    """Length of the training, batch, optimizer, learning rate, number format."""

    @model_validator(mode="after")
    def _objective_fits_family(self) -> Self:
        fault = self.objective.fault_for(self.model.family)
        faults = [] if fault is None else [fault]
        if self.model.parametrization == "mup":
            given = {"lora": self.training.lora, "initial_weights": self.training.initial_weights}
            faults += [WITH_MUP.format(name) for name, value in given.items() if value is not None]
        faults += faults_of_a_class(self.model, self.training)
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def with_overrides(self, overrides: dict[str, Any]) -> Self:
        """A validated copy with the values at dotted paths (`training.learning_rate`) replaced.

        Raises:
            pydantic.ValidationError: A value breaks a rule, or a path names no field.
        """
        raw = self.model_dump()
        for path, value in overrides.items():
            set_at(raw, path.split("."), value)
        return type(self).model_validate(raw)


def faults_of_a_class(model: ModelConfig, training: TrainingConfig) -> Iterator[str]:
    """Settings of training that need the inside of a model, beside a user's class."""
    if model.class_ is None:
        return
    if training.activation_checkpointing:
        yield (
            "training.activation_checkpointing: pretune does not know the layers of model.class; remove it, and let "
            "the class use torch.utils.checkpoint"
        )
    if training.lora is not None:
        yield "training.lora: pretune does not know the matrices of model.class; remove it"
    if training.optimizer == "muon":
        yield "training.optimizer=muon: pretune does not know the matrices of model.class; use adamw"
