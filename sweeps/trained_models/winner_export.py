"""Export of the winning trial's model as a folder that Hugging Face transformers loads, or pretune (a user's class)."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from core.model_files.adapter_folder import save_adapter
from core.model_files.checkpoint import newest_checkpoint
from core.model_files.given_folder import export_given
from core.model_files.huggingface import export_huggingface, why_not_exportable
from core.model_files.initial_weights import adapted_model, whole_model
from core.models.given_class import GivenModel
from core.settings.run_config import RunConfig
from data_pipeline.files.own_files import clear, fresh_folder
from data_pipeline.tokens.chat_template import TEMPLATE_FILE
from data_pipeline.tokens.token_blocks import PreparedCorpus
from sweeps.trained_models.sample_outputs import Sample, draw_samples


@dataclass(frozen=True)
class Winner:
    """The exported model of the winning trial, with samples."""

    model: str
    """Folder of the model, or a sentence with the reason why it was not written."""
    samples: tuple[Sample, ...] = ()
    """Its outputs on holdout rows."""


ADAPTER = "best-adapter"
"""Folder beside the winner's model with its adapters only, in the format of PEFT."""

NOT_YET = Winner("")
"""Used while a sweep runs."""


def export_winner(run: RunConfig, data: PreparedCorpus, trial_folder: Path, best: Path) -> Winner:
    """Write the final weights of a trial to `best`, replaced whole, and draw samples."""
    checkpoint = newest_checkpoint(trial_folder)
    if checkpoint is None:
        return Winner(f"no checkpoint in {trial_folder}")
    model = whole_model(run, data.vocabulary, checkpoint)
    samples = tuple(draw_samples(model, data))
    foreign = None if isinstance(model, GivenModel) else why_not_exportable(run.model)
    if foreign is not None:
        return Winner(f"{foreign} Its weights are in {checkpoint}.", samples)
    partial = fresh_folder(best.with_name(".best-partial"))
    template = data.manifest.chat_template
    parts = (run.model, data.tokenizer_path, data.vocabulary, partial)
    if isinstance(model, GivenModel):
        export_given(model, *parts, chat_template=template)
    else:
        export_huggingface(model, *parts, chat_template=template)
    clear(best)
    partial.rename(best)
    if run.training.lora is not None:
        _export_adapter(run, data, checkpoint, best.with_name(ADAPTER))
    return Winner(str(best), samples)


def _export_adapter(run: RunConfig, data: PreparedCorpus, checkpoint: Path, target: Path) -> None:
    """Write the adapters for PEFT, if their base is a folder of transformers."""
    lora, base = run.training.lora, run.training.initial_weights
    assert lora is not None
    if base is None or not (Path(base) / "config.json").is_file():
        return
    partial = fresh_folder(target.with_name(f".{target.name}-partial"))
    save_adapter(adapted_model(run, data.vocabulary, checkpoint), run.model, lora, Path(base), partial)
    if data.manifest.chat_template is not None:
        # The base lacks the chat template that the adapters were trained with.
        (partial / TEMPLATE_FILE).write_text(data.manifest.chat_template, encoding="utf-8")
    clear(target)
    partial.rename(target)


def drop_checkpoints(trial_folder: Path) -> None:
    """Remove a trial's weights and optimizer state; its log and curves stay."""
    for pattern in ("step-*", "trunk-*", "best-*"):
        for checkpoint in trial_folder.glob(pattern):
            shutil.rmtree(checkpoint)
