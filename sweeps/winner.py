"""The winning trial's model, as a folder that Hugging Face transformers loads."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from core.checkpoint import MODEL_FILE, newest_checkpoint, restore_weights
from core.huggingface import export_huggingface, why_not_exportable
from core.models import build_model
from core.run_config import RunConfig
from data_pipeline.token_blocks import PreparedCorpus
from sweeps.samples import Sample, draw_samples


@dataclass(frozen=True)
class Winner:
    """What became of the winning trial's weights."""

    model: str
    """Where the model lies, or why it could not be written, in words."""
    samples: tuple[Sample, ...] = ()
    """What it makes of rows of the holdout."""


NOT_YET = Winner("")
"""While a sweep runs."""


def export_winner(run: RunConfig, data: PreparedCorpus, trial_folder: Path, best: Path) -> Winner:
    """Write the weights that a trial ended with to `best`, replaced whole, and try the model."""
    checkpoint = newest_checkpoint(trial_folder)
    if checkpoint is None:
        return Winner(f"no checkpoint in {trial_folder}")
    model = build_model(run.model, data.vocabulary.size, pad_id=data.vocabulary.pad_id)
    restore_weights(checkpoint / MODEL_FILE, model)
    samples = tuple(draw_samples(model, data))
    foreign = why_not_exportable(run.model)
    if foreign is not None:
        return Winner(f"{foreign} Its weights are in {checkpoint}.", samples)
    partial = best.with_name(".best-partial")
    shutil.rmtree(partial, ignore_errors=True)
    export_huggingface(model, run.model, data.tokenizer_path, data.vocabulary, partial)
    shutil.rmtree(best, ignore_errors=True)
    partial.rename(best)
    return Winner(str(best), samples)


def drop_checkpoints(trial_folder: Path) -> None:
    """Remove a trial's weights and optimizer state; its log and curves stay."""
    for pattern in ("step-*", "trunk-*", "best-*"):
        for checkpoint in trial_folder.glob(pattern):
            shutil.rmtree(checkpoint)
