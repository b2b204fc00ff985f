"""Metrics that trials report, downstream tasks that add some, and the one metric that ranks trials."""

import difflib
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from data_pipeline.schema.redaction import Source
from data_pipeline.schema.settings import Count, Settings, Share
from sweeps.settings.sweep_sections import file_name

HOLDOUT_LOSS = "holdout/loss_nats_per_token"
"""Metric that ranks trials unless a file names another."""
Mode = Literal["min", "max"]

_OF_THE_HOLDOUT: dict[str, Mode] = {
    HOLDOUT_LOSS: "min",
    "holdout/accuracy": "max",
    "holdout/top10_accuracy": "max",
    "holdout/macro_f1": "max",
    "holdout/perplexity": "min",
    "holdout/bits_per_byte": "min",
}
_OF_A_TASK = ("accuracy", "macro_f1")
_STANDARD_ERROR = "_standard_error"
_ERRORS = {HOLDOUT_LOSS: "holdout/loss_standard_error"}


class TaskConfig(Settings):
    """A downstream task: texts with one label each, which a linear probe predicts from frozen features."""

    name: Annotated[str, AfterValidator(file_name)]
    """Name of the task in its metrics, as topics in task/topics/accuracy: letters, digits, dots and dashes."""
    path: Source
    """File, folder or glob of the labelled rows: CSV, TSV, JSONL or Parquet."""
    label: str
    """Column of the classes."""
    text: str | None = None
    """Column of the texts. null: found by its name."""
    test_path: Source | None = None
    """File, folder or glob of the rows that the probe is tested on, with the same columns; all rows of path then fit
    the probe. null: a share of the texts of path, chosen by a hash of the text, so that equal texts are on one side."""
    holdout: Annotated[Share, Field(ge=0.01, le=0.9)] = 0.3
    """Share of the texts that the probe is tested on; equal texts are on one side. Not used with test_path."""
    least_rows: Count = 2
    """Rows that a class needs; smaller classes are left out. 2 is the least that can be fitted and tested."""
    most_rows: Annotated[Count, Field(ge=20)] = 2_000
    """Rows that are used of each file, from 20: of more, a fixed choice in which every class keeps its share. The cost
    of a probe grows with it: 2,000 rows cost one forward pass of as many texts."""
    max_tokens: Annotated[Count, Field(ge=3)] | None = None
    """Tokens that a text is cut to, special tokens included. null: model.sequence_length."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of its metrics in reports."""
        return tuple(f"task/{self.name}/{what}" for what in _OF_A_TASK)


class MetricConfig(Settings):
    """The metric that ranks trials; its name alone may stand for the section."""

    name: str
    """Metric as reports name it: one of the holdout (holdout/accuracy) or of a task (task/topics/accuracy)."""
    mode: Mode | None = None
    """min: the lowest value is best. max: the highest is. null: as the metric means it; max for accuracy and F1."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Metric(Settings):
    """The metric that ranks trials, with its direction."""

    name: str = HOLDOUT_LOSS
    mode: Mode = "min"

    @property
    def is_loss(self) -> bool:
        """Whether it is the holdout loss, the default."""
        return self == BY_LOSS

    @property
    def unit(self) -> str:
        """Word after a difference of two values, with a space before it; empty for a metric without a unit."""
        return {HOLDOUT_LOSS: " nats", "holdout/bits_per_byte": " bits"}.get(self.name, "")

    @property
    def in_words(self) -> str:
        """The metric in a sentence, a heading or a table."""
        return "holdout loss" if self.name == HOLDOUT_LOSS else self.name

    @property
    def column(self) -> str:
        """The same in trials.csv."""
        return self.name.replace("/", "_")

    @property
    def standard_error(self) -> str:
        """Name of the metric with its standard error; reports may lack it."""
        return _ERRORS.get(self.name, self.name + _STANDARD_ERROR)

    def cost(self, value: float) -> float:
        """The value, or its negative where the highest is best: the lowest cost is best."""
        return -value if self.mode == "max" else value

    def value(self, cost: float) -> float:
        """The value of a cost."""
        return -cost if self.mode == "max" else cost

    def worst_cost(self, vocabulary_size: int) -> float:
        """Cost of a model that knows nothing: for a diverged trial."""
        worst = {
            HOLDOUT_LOSS: math.log(vocabulary_size),
            "holdout/perplexity": float(vocabulary_size),
            "holdout/bits_per_byte": math.log2(vocabulary_size),
        }
        return self.cost(worst.get(self.name, 0.0 if self.mode == "max" else 1.0))


BY_LOSS = Metric()
"""The default."""


def names_another_metric(value: Any) -> bool:
    """Whether the raw value of `metric` in a sweep file names another metric than the holdout loss."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", value)
    return name is not None and name != HOLDOUT_LOSS


def ranked_by(metric: MetricConfig | None, tasks: Iterable[TaskConfig]) -> Metric:
    """The metric that ranks trials.

    Args:
        metric: None: the holdout loss.

    Raises:
        ValueError: No trial reports it; the message names those that trials report.
    """
    if metric is None:
        return BY_LOSS
    known = _OF_THE_HOLDOUT | {name: "max" for task in tasks for name in task.metrics}
    if metric.name not in known:
        near = difflib.get_close_matches(metric.name, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"metric={metric.name} is reported by no trial; {meant}The metrics are {', '.join(known)}; tasks under "
            "evaluation.tasks add theirs"
        )
    return Metric(name=metric.name, mode=metric.mode or known[metric.name])


class EvaluationConfig(Settings):
    """When the holdout is evaluated, besides every rung and the end, and which tasks are tried beside it."""

    points: Count = 8
    """Evaluations of the holdout, spread evenly over the tokens of a trial; rungs and the end come besides."""
    tasks: tuple[TaskConfig, ...] = ()
    """Downstream tasks: a list of labelled files. A linear probe on frozen features gives task/NAME/accuracy and
    task/NAME/macro_f1 of every trial: at its end, at the end of each branch, and at the rungs that may stop it."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"tasks: the name {twice[0]} stands twice; give each task a name of its own")
        return self
