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
    """Whose weights the runs begin with."""

    weights_of: str
    """An encoder: a sweep's or training's, by name or results folder, or a folder of Hugging Face transformers.
    Also runs:/ or models:/ of MLflow."""
    from_scratch: bool = False
    """Train the same from random weights as well: what was pretraining worth?"""


class LabelledCorpusConfig(Settings):
    """Texts with a class each."""

    path: str
    """CSV, TSV, JSONL or Parquet: a file, folder or glob."""
    label: str
    """Column of the classes."""
    text: str | None = None
    """Column of the texts. None: told by its name."""
    holdout: Annotated[Share, Field(ge=0.01, le=0.9)] = 0.2
    """Share of the texts that is held out; equal texts stand on one side."""
    least_rows: Count = 1
    """Classes of fewer rows are left out."""
    max_tokens: Annotated[Count, Field(ge=3)] | None = None
    """Texts are cut to so many tokens. None: to what the model takes."""


class ClassifierTrainingConfig(Settings):
    """How a classifier is trained: AdamW along a linear schedule with a short warm-up."""

    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """Peak of the schedule. auto: 5e-5 at a width of 768, and more for narrower models, in proportion."""
    batch_size: Count = 32
    """Rows a step."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Rows of one forward/backward; changes speed and memory, not what is learnt."""
    epochs: PositiveFloat = 10.0
    """Passes over the rows. The holdout is evaluated after each, and the best is kept."""
    dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    seed: NonNegativeInt = 0
    """Of the head's first weights, the order of rows and dropout."""


class MemoryConfig(Settings):
    """What the runs may use."""

    memory: NumBytes | None = None
    """For weights, gradients, optimizer state and activations. None: no limit but the machine's."""


class FinetuneConfig(Settings):
    """One file of a fine-tuning for classes, resolved: every default written out."""

    name: Annotated[str, AfterValidator(file_name)]
    """Names the results folder and the MLflow run: letters, digits, dot, dash and underscore."""
    purpose: str = ""
    """What it is to find out; stands in the report."""
    size: str = LAPTOP
    """Which of the file's `sizes` it is; `--set size=full` takes another."""
    objective: Literal["classification"] = "classification"
    start: PretrainedConfig
    """The model that is fine-tuned."""
    corpus: LabelledCorpusConfig
    """Labelled rows."""
    training: ClassifierTrainingConfig = ClassifierTrainingConfig()
    search: dict[str, Distribution] = Field(default_factory=dict)
    """Dotted path of a setting to the values that are tried: every combination is trained."""
    grid_points: Count = 3
    """Values taken from a range; of a choice all are."""
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
