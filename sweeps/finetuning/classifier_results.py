"""Results of a fine-tuning: its runs, the chosen ones, and the result files."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.files.own_files import fresh
from data_pipeline.files.whole_files import write_atomically
from data_pipeline.preparation.labelled_rows import LabelledTexts
from sweeps.finetuning.class_metrics import ClassMetrics
from sweeps.finetuning.finetune_settings import FinetuneSettings
from sweeps.records.csv_tables import write_csv

Start = Literal["pretrained", "from scratch"]

METRICS_FILE = "metrics.json"
MODEL_FOLDER = "best"
"""The name used in a sweep's folder, so that all commands for models accept this folder."""


@dataclass(frozen=True, kw_only=True)
class ClassifierRun:
    """One training and its best epoch."""

    start: Start
    learning_rate: float
    batch_size: int
    epochs: float
    seed: int
    outcome: str = ""
    reason: str = ""
    best_epoch: float = 0.0
    """Epoch with the lowest holdout loss."""
    loss: float = float("inf")
    """Holdout loss after that epoch, in nats per row."""
    accuracy: float = 0.0
    macro_f1: float = 0.0
    training_s: float = 0.0
    tokens: int = 0
    peak_memory_bytes: int | None = None
    evaluations: tuple[dict[str, float], ...] = ()
    """Reports with the holdout's metrics, in order."""

    @property
    def name(self) -> str:
        """Unique name among the runs of one fine-tuning; valid as a folder name."""
        start = self.start.replace(" ", "-")
        return f"{start}-rate-{self.learning_rate:g}-batch-{self.batch_size}-epochs-{self.epochs:g}-seed-{self.seed}"


@dataclass(frozen=True)
class Judged:
    """The run with the lowest holdout loss among those of one start, with its metrics on the holdout."""

    run: ClassifierRun
    metrics: ClassMetrics
    probabilities: Tensor
    """(n, C): class probabilities of the held-out rows, in their order."""


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """All results of a fine-tuning."""

    folder: Path
    settings: FinetuneSettings
    weights_of: str
    """The pretrained model, as given by the user."""
    table: str
    found: LabelledTexts
    is_held_out: NDArray[np.bool_]
    num_cut: int
    """Number of texts longer than a row."""
    row_tokens: int
    num_parameters: int
    runs: tuple[ClassifierRun, ...]
    pretrained: Judged
    scratch: Judged | None
    commonest: str
    """Most frequent class of the training rows."""
    majority: ClassMetrics
    """Metrics of always predicting that class."""
    model: str
    """Folder of the model, or the reason why transformers cannot load it."""


def figures_of(end: FinetuneResult) -> dict[str, Any]:
    """Content of metrics.json, for scripts."""
    kept, scratch = end.pretrained, end.scratch
    found = end.found
    return {
        "label": end.settings.label,
        "model": end.model,
        "pretrained_model": end.weights_of,
        "table": end.table,
        "num_parameters": end.num_parameters,
        "num_classes": len(found.classes),
        "num_rows_trained": int((~end.is_held_out).sum()),
        "num_rows_held_out": int(end.is_held_out.sum()),
        "num_rows_rejected": len(found.rejects),
        "num_rows_of_rare_classes_left_out": found.left_out.total(),
        "num_rows_with_contradictory_labels": found.num_contradictory,
        "num_texts_cut": end.num_cut,
        "row_tokens": end.row_tokens,
        **_scores(kept.metrics),
        "holdout_loss_nats_per_row": kept.run.loss,
        "kept": "the epoch and the run of the lowest holdout loss",
        "chosen_run": _without_evaluations(kept.run),
        "majority_class": {"name": end.commonest, **_scores(end.majority)},
        "from_scratch": None
        if scratch is None
        else {**_scores(scratch.metrics), "chosen_run": _without_evaluations(scratch.run)},
        "classes": [asdict(one) for one in kept.metrics.classes],
        "confusions": kept.metrics.confusions.tolist(),
        "runs": [_without_evaluations(run) for run in end.runs],
    }


def write_files(end: FinetuneResult) -> dict[str, Any]:
    """Write metrics.json, predictions.csv and rejects.jsonl; returns the content of metrics.json."""
    write_predictions(end)
    rejects = (json.dumps(one.as_json(), ensure_ascii=False) + "\n" for one in end.found.rejects)
    write_atomically(end.folder / "rejects.jsonl", "".join(rejects))
    figures = figures_of(end)
    # Write metrics.json last: it marks the fine-tuning as done.
    write_atomically(end.folder / METRICS_FILE, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    return figures


def write_predictions(end: FinetuneResult) -> None:
    """Write predictions.csv: every held-out row with its label, its prediction, and both probabilities."""
    columns = ["file", "line", "label", "predicted", "probability", "probability_of_label"]
    with open(end.folder / "predictions.csv", "w", newline="", encoding="utf-8", opener=fresh) as file:
        write_csv(file, columns, _predictions(end), line_end="\r\n")


def _predictions(end: FinetuneResult) -> Iterator[list[Any]]:
    names = end.found.classes
    number = {name: index for index, name in enumerate(names)}
    held_out = np.flatnonzero(end.is_held_out).tolist()
    for shares, index in zip(end.pretrained.probabilities.numpy(), held_out, strict=True):
        label, taken_for = end.found.labels[index], int(shares.argmax())
        row = [end.found.files[index], end.found.lines[index], label, names[taken_for]]
        yield [*row, f"{shares[taken_for]:.6f}", f"{shares[number[label]]:.6f}"]


def best_of(runs: Sequence[ClassifierRun], start: Start) -> ClassifierRun | None:
    """The completed run with the lowest holdout loss among those of one start; None without one."""
    done = [run for run in runs if run.start == start and run.outcome == "completed"]
    return min(done, key=lambda run: run.loss, default=None)


def _scores(metrics: ClassMetrics) -> dict[str, Any]:
    low, high = metrics.accuracy_interval
    return {"accuracy": metrics.accuracy, "accuracy_95_percent": [low, high], "macro_f1": metrics.macro_f1}


def _without_evaluations(run: ClassifierRun) -> dict[str, Any]:
    values = asdict(run)
    del values["evaluations"]
    return {"name": run.name} | values
