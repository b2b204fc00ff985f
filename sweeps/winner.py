"""The winning trial's model, as a folder that Hugging Face transformers loads."""

import shutil
from pathlib import Path

from core.checkpoint import MODEL_FILE, newest_checkpoint, restore_weights
from core.huggingface import export_huggingface, why_not_exportable
from core.models import build_model
from core.run_config import RunConfig
from data_pipeline.token_blocks import PreparedCorpus


def export_winner(run: RunConfig, data: PreparedCorpus, trial_folder: Path, best: Path) -> str:
    """Write the weights that a trial ended with to `best`, replaced whole.

    Returns:
        What was written, or why it could not be, in words.
    """
    checkpoint = newest_checkpoint(trial_folder)
    if checkpoint is None:
        return f"no checkpoint in {trial_folder}"
    foreign = why_not_exportable(run.model)
    if foreign is not None:
        return foreign
    model = build_model(run.model, data.vocabulary.size, pad_id=data.vocabulary.pad_id)
    restore_weights(checkpoint / MODEL_FILE, model)
    partial = best.with_name(".best-partial")
    shutil.rmtree(partial, ignore_errors=True)
    export_huggingface(model, run.model, data.tokenizer_path, data.vocabulary, partial)
    shutil.rmtree(best, ignore_errors=True)
    partial.rename(best)
    return str(best)


def drop_checkpoints(trial_folder: Path) -> None:
    """Remove a trial's weights and optimizer state; its log and curves stay."""
    for pattern in ("step-*", "best-*"):
        for checkpoint in trial_folder.glob(pattern):
            shutil.rmtree(checkpoint)
