"""Configuration of a fine-tuning for classification: pretrained model, labelled rows, training, search."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from data_pipeline.reading.table_rows import SettingNames
from data_pipeline.schema.redaction import Source
from data_pipeline.schema.settings import Count, NumBytes, Settings, Share
from sweeps.finetuning.finetune_settings import FinetuneSettings
from sweeps.search_space.distribution import Distribution
from sweeps.settings.size_presets import LAPTOP
from sweeps.settings.sweep_sections import file_name
from sweeps.settings.swept_values import fault_at, typed_space

IN_A_FILE = SettingNames(
    text="corpus.text",
    label="corpus.label",
    least_rows="corpus.least_rows",
    max_tokens="corpus.max_tokens",
    before_value=": ",
)
SWEEPABLE = ("training.learning_rate", "training.batch_size", "training.epochs", "training.seed")
"""Settings that runs of one fine-tuning may differ in."""
_MOST_RUNS = 1000


class PretrainedConfig(Settings):
    """The pretrained model that the runs start from."""

    weights_of: str
    """Encoder whose weights the runs begin with: a sweep or training by name or results folder, a folder of Hugging
    Face transformers, or runs:/ID or models:/NAME of MLflow."""
    from_scratch: bool = False
    """true: each run is also trained from random weights, which shows the gain of pretraining."""


class LabelledCorpusConfig(Settings):
    """Texts with one label each."""

    path: Source
    """File, folder or glob of the labelled rows: CSV, TSV, JSONL or Parquet."""
    label: str
    """Column of the classes."""
    text: str | None = None
    """Column of the texts. null: found by its name."""
    holdout: Annotated[Share, Field(ge=0.01, le=0.9)] = 0.2
    """Share of the texts that no run trains on; equal texts are on one side. 10 % to 20 % is usual."""
    least_rows: Count = 1
    """Rows that a class needs; smaller classes are left out."""
    max_tokens: Annotated[Count, Field(ge=3)] | None = None
    """Tokens that a text is cut to, special tokens included. null: the longest row that the model takes."""


class ClassifierTrainingConfig(Settings):
    """Training of a classifier: AdamW with a linear schedule and a short warm-up."""

    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """Highest learning rate of the schedule. auto: 5e-5 at a width of 768 (BERT, arXiv:1810.04805), and in inverse
    proportion to the width more for narrower models."""
    batch_size: Count = 32
    """Rows in each optimizer step. 16 and 32 are usual (BERT)."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Rows in each forward and backward pass. It changes speed and memory, never what is learnt. auto: chosen by
    memory."""
    epochs: PositiveFloat = 10.0
    """Passes over the rows. The holdout is evaluated after each, and the best epoch is kept. 3 to 10 are usual."""
    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """Share of activations set to zero in training, of the encoder and of the head. 0.1 is usual (BERT)."""
    seed: NonNegativeInt = 0
    """Seed of the head's initial weights, the order of rows and dropout."""


class MemoryConfig(Settings):
    """Resources of the runs."""

    memory: NumBytes | None = None
    """Memory limit of the runs, in bytes, for weights, gradients, optimizer state and activations. Batches that do not
    fit pass in smaller micro-batches. null: all that the machine has."""


class FinetuneConfig(Settings):
    """One file of a fine-tuning for classes, resolved: every default written out."""

    name: Annotated[str, AfterValidator(file_name)]
    """Name of the fine-tuning, of its results folder and of its MLflow run: up to 64 letters, digits, dots, dashes and
    underscores; the first is a letter or digit."""
    purpose: str = ""
    """Question that the fine-tuning answers, in your words; the report quotes it."""
    size: str = LAPTOP
    """Name of the size that is taken: laptop is the file as it stands, others are under sizes. --set size=full takes
    another."""
    objective: Literal["classification"] = "classification"
    """Predict the class of a text. It marks a file as one of a fine-tuning."""
    start: PretrainedConfig
    """Encoder that is fine-tuned."""
    corpus: LabelledCorpusConfig
    """Labelled rows: texts, and the class of each."""
    training: ClassifierTrainingConfig = ClassifierTrainingConfig()
    """Learning rate, batch, epochs, dropout and seed of the classifier."""
    search: dict[str, Distribution] = Field(default_factory=dict)
    """Dotted path of each setting that is tried, and its values, as one of the distributions below: learning_rate,
    batch_size, epochs and seed of training. Every combination is trained. Empty: one run. Example:
    `training.seed: {choice: [0, 1, 2]}`"""
    grid_points: Count = 3
    """Values taken from each range of search; a choice gives all of its values."""
    resources: MemoryConfig = MemoryConfig()
    """Memory of the runs."""

    @field_validator("search")
    @classmethod
    def _values_are_of_their_types(cls, search: dict[str, Distribution]) -> dict[str, Distribution]:
        rates = search.get("training.learning_rate")
        if rates is not None and "auto" in rates.extremes() and len(rates.extremes()) > 1:
            words = "auto stands beside numbers; list numbers only, or remove the setting from search to use auto"
            fault = fault_at(("training.learning_rate",), None, words)
            raise ValidationError.from_exception_data(cls.__name__, [fault])
        conditional = [path for path, distribution in search.items() if distribution.when]
        if conditional:
            words = "a fine-tuning tries all combinations, so it has no conditions; remove when"
            fault = fault_at((conditional[0], "when"), None, words)
            raise ValidationError.from_exception_data(cls.__name__, [fault])
        return typed_space(cls, search)

    @model_validator(mode="after")
    def _is_a_grid_of_moderate_size(self) -> Self:
        num_runs = math.prod(len(self._tried(path)) for path in SWEEPABLE)
        if num_runs > _MOST_RUNS:
            raise ValueError(
                f"search has {num_runs:,} combinations, and at most {_MOST_RUNS} are allowed; list fewer values"
            )
        return self

    def settings(self) -> FinetuneSettings:
        """The settings in the form that the training takes."""
        corpus, training = self.corpus, self.training
        rates = self._tried("training.learning_rate")
        micro = training.micro_batch_size
        return FinetuneSettings(
            label=corpus.label,
            purpose=self.purpose,
            text=corpus.text,
            epochs=tuple(map(float, self._tried("training.epochs"))),
            batch_sizes=self._tried("training.batch_size"),
            learning_rates=() if rates == ("auto",) else tuple(map(float, rates)),
            seeds=self._tried("training.seed"),
            from_scratch=self.start.from_scratch,
            dropout=training.dropout,
            holdout=corpus.holdout,
            least_rows=corpus.least_rows,
            max_tokens=corpus.max_tokens,
            micro_batch_size=None if micro == "auto" else micro,
            memory_bytes=self.resources.memory,
        )

    def _tried(self, path: str) -> tuple[Any, ...]:
        if path in self.search:
            return self.search[path].grid(self.grid_points)
        return (getattr(self.training, path.partition(".")[2]),)
