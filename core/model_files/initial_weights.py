"""The model of a run, with its initial weights or those of a checkpoint."""

from pathlib import Path

import torch
from torch import Tensor

from core.model_files.adapter_folder import base_hash, import_adapted, is_adapter
from core.model_files.checkpoint import MODEL_FILE, copy_weights, model_tensors, restore_weights
from core.model_files.given_folder import given_weights, holds_given
from core.model_files.huggingface import import_huggingface
from core.model_files.safetensors_files import read_tensors
from core.models.classifier import ModernClassifier, RobertaClassifier, take_encoder
from core.models.given_class import GivenModel
from core.models.language_model import LanguageModel
from core.models.lora import add_lora, merge_lora
from core.models.model_factory import build_model
from core.settings.precision import choose_precision
from core.settings.run_config import RunConfig
from data_pipeline.tokens.token_blocks import PreparedCorpus
from data_pipeline.tokens.tokenizer import Vocabulary


def fresh_model(run: RunConfig, data: PreparedCorpus, device: torch.device) -> LanguageModel:
    """The model of a run with its initial weights; equal seeds give equal weights on every rank and device type.

    Raises:
        ValueError: `training.initial_weights` belong to another model.
    """
    # Draw on the CPU, so that a seed gives the same weights on every device type.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.training.seed)
        model = build_model(
            run.model, data.vocabulary.size, pad_id=data.vocabulary.pad_id, num_classes=run.objective.num_classes
        )
        if run.training.initial_weights is not None:
            _take_weights(Path(run.training.initial_weights), model)
        if run.training.lora is not None:
            precision = choose_precision(run.training.precision, device)
            add_lora(model, run.model, run.training.lora, frozen_dtype=precision.dtype)
    model = model.to(device)
    model.set_activation_checkpointing(run.training.activation_checkpointing)
    return model


def whole_model(run: RunConfig, vocabulary: Vocabulary, checkpoint: Path) -> LanguageModel:
    """The model of a checkpoint, in fp32, with adapters merged into their base.

    Raises:
        ValueError: The checkpoint, or `training.initial_weights`, belongs to another model.
    """
    model = build_model(run.model, vocabulary.size, pad_id=vocabulary.pad_id)
    if run.training.lora is None:
        restore_weights(checkpoint / MODEL_FILE, model)
        return model
    adapted = adapted_model(run, vocabulary, checkpoint)
    merge_lora(adapted)
    return adapted


def adapted_model(run: RunConfig, vocabulary: Vocabulary, checkpoint: Path) -> LanguageModel:
    """Like `whole_model` for a run with LoRA, with the adapters kept separate from their base."""
    lora, initial = run.training.lora, run.training.initial_weights
    assert lora is not None
    assert initial is not None
    model = build_model(run.model, vocabulary.size, pad_id=vocabulary.pad_id)
    _take_weights(Path(initial), model)
    add_lora(model, run.model, lora)
    restore_weights(checkpoint / MODEL_FILE, model)
    return model


def hash_of_base(run: RunConfig) -> str | None:
    """Hash of the base weights of a run with adapters; None without adapters."""
    if run.training.lora is None or run.training.initial_weights is None:
        return None
    return base_hash(Path(run.training.initial_weights))


def _take_weights(folder: Path, model: LanguageModel) -> None:
    """Copy the weights of a transformers folder, an adapter or a checkpoint; a classifier takes only the encoder's."""
    if holds_given(folder):
        if not isinstance(model, GivenModel):
            raise ValueError(f"{folder} holds a model of a user's class; set model.class to the same class")
        copy_weights(given_weights(folder), model, folder)
        return
    if isinstance(model, GivenModel):
        copy_weights(read_tensors(folder / MODEL_FILE), model, folder)
        return
    if is_adapter(folder) or (folder / "config.json").exists():
        loaded = import_adapted(folder)[0] if is_adapter(folder) else import_huggingface(folder)
        weights = _without_padding(model_tensors(loaded.model), num_tokens=model.tokens.num_embeddings)
    else:
        weights = read_tensors(folder / MODEL_FILE)
    if isinstance(model, RobertaClassifier | ModernClassifier):
        take_encoder(model, weights)
    else:
        copy_weights(weights, model, folder)


_ROWS_A_TOKEN = ("tokens.weight", "head_weight", "head_bias")
_PADDED_TO = 512
"""Vocabularies are rounded up to multiples of at most this number for speed; a larger difference is no padding."""


def _without_padding(weights: dict[str, Tensor], *, num_tokens: int) -> dict[str, Tensor]:
    """The weights without unused rows at the end of the vocabulary, which only pad it to a round number."""
    num_unused = weights["tokens.weight"].shape[0] - num_tokens
    if not 0 < num_unused < _PADDED_TO:
        return weights
    return {name: tensor[:num_tokens] if name in _ROWS_A_TOKEN else tensor for name, tensor in weights.items()}
