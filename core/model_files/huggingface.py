"""Export to and import from Hugging Face transformers folders, without that library."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from core.layers.feed_forward import feed_forward_kind
from core.model_files.huggingface_config import (
    OUR_ACTIVATION,
    classes_of,
    classifier_config,
    huggingface_config,
    our_config,
    read_config,
)
from core.model_files.safetensors_files import read_tensors
from core.models.huggingface_names import ARCHITECTURES, form_of, from_huggingface, to_huggingface
from core.models.language_model import LanguageModel
from core.models.model_factory import build_model, without_values
from core.settings.model_config import ModelConfig
from data_pipeline.files.json_files import read_json
from data_pipeline.tokens.chat_template import SETTINGS_FILE, TEMPLATE_FILE, chat_with_marks
from data_pipeline.tokens.tokenizer import Vocabulary

WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model read from a folder, with its settings."""

    model: LanguageModel
    config: ModelConfig
    vocabulary_size: int
    pad_id: int
    classes: tuple[str, ...] = ()
    """Class names of a classifier; empty for language models."""


def why_not_exportable(config: ModelConfig) -> str | None:
    """Error message if transformers has no class for this model; None if it can be exported."""
    kind = feed_forward_kind(config)
    form = form_of(config)
    allowed = ("gelu",) if form == "roberta" else tuple(OUR_ACTIVATION)
    if kind in allowed:
        return None
    return (
        f"a model with feed_forward: {kind} cannot be exported: {ARCHITECTURES[form]} of Hugging Face transformers has "
        f"no such feed-forward. Train with feed_forward: {' or '.join(allowed)} to export it."
    )


def export_huggingface(
    model: LanguageModel,
    config: ModelConfig,
    tokenizer_path: Path,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    chat_template: str | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write a folder for `AutoModelForMaskedLM`, `AutoModelForCausalLM` or `AutoModelForSequenceClassification` (by the
    kind of model) and `AutoTokenizer`.

    Files: config.json, model.safetensors (in the dtype of the model), tokenizer.json, tokenizer_config.json;
    generation_config.json for decoders; chat_template.jinja for models trained on conversations.

    Args:
        chat_template: Jinja source of the template of these conversations, for `apply_chat_template`.
        classes: Class names of a classifier; None for language models.

    Raises:
        ValueError: transformers has no class for this model; the message names the unsupported part.
    """
    reason = why_not_exportable(config)
    if reason is not None:
        raise ValueError(reason)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_huggingface(model.state_dict(), config, is_classifier=classes is not None)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    num_embeddings = model.tokens.num_embeddings
    theirs = huggingface_config(config, vocabulary, num_embeddings) | {"dtype": dtype}
    _write_json(folder / "config.json", theirs if classes is None else theirs | classifier_config(config, classes))
    if config.is_causal:
        ends = [vocabulary.eos_id]
        if chat_template is not None:
            tokenizer = Tokenizer.from_file(str(tokenizer_path))
            ends = [*chat_with_marks(chat_template, tokenizer).end_ids(tokenizer)]
        generation = {"bos_token_id": vocabulary.bos_id, "eos_token_id": ends[0] if len(ends) == 1 else ends}
        _write_json(folder / "generation_config.json", generation)
    export_tokenizer(config, tokenizer_path, vocabulary, folder, chat_template)


def import_huggingface(folder: Path, *, weights: dict[str, Tensor] | None = None) -> Loaded:
    """The model in a transformers folder, in fp32 and evaluation mode; its `sequence_length` is the maximum.

    Args:
        weights: Weights to use instead of those in the folder, with transformers' names.

    Raises:
        ValueError: The model is none of the three supported forms, or an unsupported variant; lists all differences.
    """
    theirs = read_config(folder)
    config = our_config(theirs, folder)
    pad_id = theirs.get("pad_token_id")
    pad_id = 1 if pad_id is None else pad_id
    classes = classes_of(theirs)
    num_classes = len(classes) if classes else None
    # The weights are replaced below.
    with without_values():
        model = build_model(config, theirs["vocab_size"], pad_id=pad_id, num_classes=num_classes)
    theirs_by_name = read_weights(folder) if weights is None else weights
    state = from_huggingface(theirs_by_name, config, is_classifier=bool(classes))
    _check_shapes(state, model, folder)
    model.load_state_dict(state, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return Loaded(model.eval(), config, vocabulary_size=theirs["vocab_size"], pad_id=pad_id, classes=classes)


def _check_shapes(state: Mapping[str, Tensor], model: LanguageModel, folder: Path) -> None:
    wanted = model.state_dict()
    others = [
        f"{name} is {tuple(tensor.shape)} and should be {tuple(wanted[name].shape)}"
        for name, tensor in state.items()
        if tensor.shape != wanted[name].shape
    ]
    if others:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {others[0]}"
            + (f", and {len(others) - 1} more" if len(others) > 1 else "")
            + "; save the model again"
        )


def holds_weights(folder: Path) -> bool:
    """True if a folder has weights in safetensors, in one file or several."""
    return any((folder / name).is_file() for name in (WEIGHTS_FILE, _INDEX_FILE))


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, in order.

    Raises:
        ValueError: The folder has none.
    """
    if not holds_weights(folder):
        raise ValueError(f"{folder} has no {WEIGHTS_FILE}; save the model with safe_serialization=True")
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    # transformers splits large models into several files, which the index lists. Use base names only: a foreign index
    # must not point outside the folder.
    index = read_json(folder / _INDEX_FILE)
    return [folder / name for name in sorted({Path(name).name for name in index["weight_map"].values()})]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by name; half precision becomes fp32.

    Raises:
        ValueError: The folder has no weights.
    """
    tensors = {name: tensor for file in weight_files(folder) for name, tensor in read_tensors(file).items()}
    return {
        name: tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
        for name, tensor in tensors.items()
    }


def export_tokenizer(
    config: ModelConfig, tokenizer_path: Path, vocabulary: Vocabulary, folder: Path, chat_template: str | None
) -> None:
    """Write the tokenizer, with a post-processor that adds the special tokens, as transformers expects."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    named = {
        "bos_token": vocabulary.bos_id,
        "eos_token": vocabulary.eos_id,
        "pad_token": vocabulary.pad_id,
        "unk_token": vocabulary.unk_id,
        "mask_token": vocabulary.mask_id,
    }
    if not config.is_causal:
        named |= {"cls_token": vocabulary.bos_id, "sep_token": vocabulary.eos_id}
    words = {name: tokenizer.id_to_token(number) for name, number in named.items() if number is not None}
    if tokenizer.post_processor is None:
        begin, end = words["bos_token"], words["eos_token"]
        # A decoder continues its input, so no token follows it.
        template = f"{begin} $A" if config.is_causal else f"{begin} $A {end}"
        special = {begin: vocabulary.bos_id, end: vocabulary.eos_id}
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=list(special.items()))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.num_positions,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **words,
    }
    if chat_template is not None:
        # Older versions of transformers and other programs read the JSON key; newer versions read the file.
        settings["chat_template"] = chat_template
        (folder / TEMPLATE_FILE).write_text(chat_template, encoding="utf-8")
    _write_json(folder / SETTINGS_FILE, settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
