"""Configuration of a fine-tuning for classification: pretrained model, labelled rows, training, search."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, model_validator

from data_pipeline.reading.table_rows import SettingNames
from data_pipeline.schema.settings import Count, NumBytes, Settings, Share
from sweeps.finetuning.finetune_results import FinetuneSettings
from sweeps.settings.search_space import Distribution
from sweeps.settings.size_presets import LAPTOP
from sweeps.settings.sweep_sections import file_name

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
    """An encoder: a sweep's or training's, by name or results folder, or a folder of Hugging Face transformers.
    Also runs:/ or models:/ of MLflow."""
    from_scratch: bool = False
    """Also train from random weights, to show the gain from pretraining."""


class LabelledCorpusConfig(Settings):
    """Texts with one label each."""

    path: str
    """CSV, TSV, JSONL or Parquet: a file, folder or glob."""
    label: str
    """Column of the classes."""
    text: str | None = None
    """Column of the texts. None: detected by name."""
    holdout: Annotated[Share, Field(ge=0.01, le=0.9)] = 0.2
    """Share of the texts to hold out; equal texts are on the same side."""
    least_rows: Count = 1
    """Minimum rows of a class; smaller classes are left out."""
    max_tokens: Annotated[Count, Field(ge=3)] | None = None
    """Texts are truncated to this many tokens. None: the model's maximum."""


class ClassifierTrainingConfig(Settings):
    """Training of a classifier: AdamW with a linear schedule and a short warm-up."""

    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """Peak of the schedule. auto: 5e-5 x 768 / width of the model."""
    batch_size: Count = 32
    """Rows per step."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Rows per forward/backward pass; affects speed and memory, not the result."""
    epochs: PositiveFloat = 10.0
    """Passes over the rows. The holdout is evaluated after each, and the best epoch is kept."""
    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    seed: NonNegativeInt = 0
    """Seed of the head's initial weights, the order of rows and dropout."""


class MemoryConfig(Settings):
    """Resources of the runs."""

    memory: NumBytes | None = None
    """Memory limit for weights, gradients, optimizer state and activations. None: the machine's memory."""


class FinetuneConfig(Settings):
    """One file of a fine-tuning for classes, resolved: every default written out."""

    name: Annotated[str, AfterValidator(file_name)]
    """Names the results folder and the MLflow run: letters, digits, dot, dash and underscore."""
    purpose: str = ""
    """Question that the fine-tuning answers; shown in the report."""
    size: str = LAPTOP
    """The size in use, one of the file's `sizes`; `--set size=full` selects another."""
    objective: Literal["classification"] = "classification"
    start: PretrainedConfig
    """The model that is fine-tuned."""
    corpus: LabelledCorpusConfig
    """Labelled rows."""
    training: ClassifierTrainingConfig = ClassifierTrainingConfig()
    search: dict[str, Distribution] = Field(default_factory=dict)
    """Values to try, by dotted path of the setting; every combination is trained."""
    grid_points: Count = 3
    """Number of values from a range; a choice contributes all its values."""
    resources: MemoryConfig = MemoryConfig()

    @model_validator(mode="after")
    def _is_a_grid_of_moderate_size(self) -> Self:
        num_runs = math.prod(len(self._tried(path)) for path in SWEEPABLE)
        if num_runs > _MOST_RUNS:
            raise ValueError(
                f"search has {num_runs:,} combinations, and at most {_MOST_RUNS} are allowed; list fewer values"
            )
        return self

    def settings(self) -> FinetuneSettings:
        """The settings for the fine-tuning engine."""
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
