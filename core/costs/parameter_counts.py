"""Number of parameters of a run's model: in total, and trainable."""

from dataclasses import dataclass
from functools import lru_cache

from core.models.lora import add_lora
from core.models.model_factory import model_of_shapes, without_values
from core.settings.model_config import ModelConfig
from core.settings.run_config import RunConfig
from core.settings.training_config import LoraConfig


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameter counts of a model, adapters included; shared parameters count once."""

    total: int
    trainable: int


def parameter_counts(run: RunConfig, vocabulary_size: int) -> ParameterCounts:
    """Parameter counts of the model that a run trains, with its adapters."""
    return _counts(run.model, vocabulary_size, run.training.lora)


@lru_cache(maxsize=256)
def _counts(model: ModelConfig, vocabulary_size: int, lora: LoraConfig | None) -> ParameterCounts:
    built = model_of_shapes(model, vocabulary_size)
    if lora is not None:
        with without_values():
            add_lora(built, model, lora)
    return ParameterCounts(built.num_parameters(), built.num_trainable_parameters())
