"""To and from folders of Hugging Face transformers, without needing that library."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from core.feed_forward import feed_forward_kind, inner_width
from core.huggingface_names import ARCHITECTURES, CLASSIFIERS, form_of, from_huggingface, to_huggingface
from core.language_model import LanguageModel
from core.models import build_model
from core.run_config import ModelConfig
from data_pipeline.chat_template import SETTINGS_FILE, TEMPLATE_FILE, chat_with_marks
from data_pipeline.tokenizer import Vocabulary

_MODEL_TYPES = {"roberta": "roberta", "modern": "modernbert", "llama": "llama"}
WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_OUR_ACTIVATION = {"geglu": "gelu", "swiglu": "silu"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model read from a folder, with what is needed to go on with it."""

    model: LanguageModel
    config: ModelConfig
    vocabulary_size: int
    pad_id: int
    classes: tuple[str, ...] = ()
    """What a classifier tells apart; empty for language models."""


def why_not_exportable(config: ModelConfig) -> str | None:
    """The reason why transformers has no class for this model; None: it has one, and export works."""
    kind = feed_forward_kind(config)
    form = form_of(config)
    allowed = ("gelu",) if form == "roberta" else tuple(_OUR_ACTIVATION)
    if kind in allowed:
        return None
    return (
        f"a model with feed_forward: {kind} cannot be exported: {ARCHITECTURES[form]} of Hugging Face transformers has "
        f"no such feed-forward. It can be exported with {' or '.join(allowed)}."
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
    """Writes a folder that `AutoModelForMaskedLM`, `AutoModelForCausalLM` or, of a classifier,
    `AutoModelForSequenceClassification`, and `AutoTokenizer` load as it is.

    Files: config.json, model.safetensors (in the model's type), tokenizer.json, tokenizer_config.json;
    generation_config.json for decoders; chat_template.jinja where the model was trained on conversations.

    Args:
        chat_template: What wrote these conversations, as Jinja; `apply_chat_template` then does the same.
        classes: Names of what a classifier tells apart; None for language models.

    Raises:
        ValueError: transformers has no class for this form of model; the message says which part is foreign.
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
    _write_json(folder / "config.json", theirs if classes is None else theirs | _classifier_config(config, classes))
    if config.is_causal:
        ends = [vocabulary.eos_id]
        if chat_template is not None:
            tokenizer = Tokenizer.from_file(str(tokenizer_path))
            ends = [*chat_with_marks(chat_template, tokenizer).end_ids(tokenizer)]
        generation = {"bos_token_id": vocabulary.bos_id, "eos_token_id": ends[0] if len(ends) == 1 else ends}
        _write_json(folder / "generation_config.json", generation)
    _export_tokenizer(config, tokenizer_path, vocabulary, folder, chat_template)


def import_huggingface(folder: Path, *, weights: dict[str, Tensor] | None = None) -> Loaded:
    """The model in a folder of transformers, in fp32 and evaluation mode; `sequence_length` is the longest it takes.

    Args:
        weights: Instead of those in the folder, under their names.

    Raises:
        ValueError: Not one of the three forms, or a variant of it that is not ours; every difference is named.
    """
    theirs = read_config(folder)
    config = _our_config(theirs, folder)
    pad_id = theirs.get("pad_token_id")
    pad_id = 1 if pad_id is None else pad_id
    # Weights are about to be replaced: the meta device spares drawing them.
    classes = _classes_of(theirs)
    num_classes = len(classes) if classes else None
    with torch.device("meta"):
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
            f"{folder} holds weights of another shape than its config.json says: {others[0]}"
            + (f", and {len(others) - 1} more" if len(others) > 1 else "")
        )


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says, in their words.

    Raises:
        ValueError: It is missing or no JSON object.
    """
    try:
        theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ValueError(f"{folder} has no config.json that can be read: {cause}") from cause
    if not isinstance(theirs, dict):
        raise ValueError(f"{folder / 'config.json'} is not an object of settings")
    return theirs


def read_shape(folder: Path) -> tuple[ModelConfig, int]:
    """Shape of the model in a folder of transformers, and rows of its vocabulary; its weights are not looked at.

    Raises:
        ValueError: As `import_huggingface`.
    """
    theirs = read_config(folder)
    return _our_config(theirs, folder), int(theirs["vocab_size"])


def holds_weights(folder: Path) -> bool:
    """Whether a folder has weights in safetensors, in one file or several."""
    return any((folder / name).is_file() for name in (WEIGHTS_FILE, _INDEX_FILE))


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder, in order.

    Raises:
        ValueError: It has none.
    """
    if not holds_weights(folder):
        raise ValueError(f"{folder} has no {WEIGHTS_FILE}; save the model with safe_serialization=True")
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    # transformers cuts large models into several files; the names in the index are those of files beside it.
    index = json.loads((folder / _INDEX_FILE).read_text(encoding="utf-8"))
    return [folder / name for name in sorted({Path(name).name for name in index["weight_map"].values()})]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder; those in half precision become fp32."""
    tensors = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    return {
        name: tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
        for name, tensor in tensors.items()
    }


def huggingface_config(config: ModelConfig, vocabulary: Vocabulary, num_embeddings: int) -> dict[str, Any]:
    """Contents of config.json."""
    form = form_of(config)
    common = {
        "architectures": [ARCHITECTURES[form]],
        "model_type": _MODEL_TYPES[form],
        "vocab_size": num_embeddings,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": inner_width(config),
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
    }
    if form == "roberta":
        return common | {
            "hidden_act": "gelu",
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.dropout,
            "max_position_embeddings": config.num_positions + vocabulary.pad_id + 1,
            "type_vocab_size": 1,
            "layer_norm_eps": config.norm_epsilon,
            "pad_token_id": vocabulary.pad_id,
        }
    activation = _OUR_ACTIVATION[feed_forward_kind(config)]
    rope = {"rope_type": "default", "rope_theta": config.rotary_base}
    if form == "modern":
        return common | {
            "hidden_activation": activation,
            "max_position_embeddings": config.num_positions,
            "norm_eps": config.norm_epsilon,
            "attention_dropout": config.dropout,
            "embedding_dropout": config.dropout,
            "mlp_dropout": config.dropout,
            "layer_types": ["full_attention"] * config.layers,
            "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
            "pad_token_id": vocabulary.pad_id,
            "cls_token_id": vocabulary.bos_id,
            "sep_token_id": vocabulary.eos_id,
        }
    return common | {
        "hidden_act": activation,
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.width // config.heads,
        "max_position_embeddings": config.num_positions,
        "rms_norm_eps": config.norm_epsilon,
        "attention_dropout": config.dropout,
        "rope_parameters": rope,
        # No padding id: transformers would keep that row of the embeddings from learning, and here it may be </s>.
        "pad_token_id": None,
    }


def _classifier_config(config: ModelConfig, classes: Sequence[str]) -> dict[str, Any]:
    """What config.json of a classifier has besides."""
    form = form_of(config)
    names = {str(number): name for number, name in enumerate(classes)}
    return {
        "architectures": [CLASSIFIERS[form]],
        "id2label": names,
        "label2id": {name: int(number) for number, name in names.items()},
        "problem_type": "single_label_classification",
        "classifier_dropout": config.dropout,
    } | ({"classifier_pooling": "cls"} if form == "modern" else {})


def _classes_of(theirs: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a classifier's folder, in their order."""
    if not set(theirs.get("architectures") or ()) & set(CLASSIFIERS.values()):
        return ()
    names = theirs.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(names[number] for number in sorted(names, key=int))


def _our_config(theirs: dict[str, Any], folder: Path) -> ModelConfig:
    """Settings of ours that describe their model.

    Raises:
        ValueError: The model has something that ours has not.
    """
    forms = {model_type: form for form, model_type in _MODEL_TYPES.items()}
    form = forms.get(theirs.get("model_type", ""))
    if form is None:
        raise ValueError(f"{folder} holds a model of type {theirs.get('model_type')!r}; known are {', '.join(forms)}")
    activation = str(theirs.get("hidden_activation" if form == "modern" else "hidden_act"))
    heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
    ropes = _ropes(theirs, form)
    # What they say -> what it must be, so that leaving it out of ModelConfig changes nothing.
    foreign = {
        "activation": (activation, ("gelu",) if form == "roberta" else tuple(_OUR_ACTIVATION.values())),
        "type_vocab_size": (theirs.get("type_vocab_size", 1), (1,)),
        "attention_bias": (bool(theirs.get("attention_bias", False)), (False,)),
        "mlp_bias": (bool(theirs.get("mlp_bias", False)), (False,)),
        "norm_bias": (bool(theirs.get("norm_bias", False)), (False,)),
        "head_dim": (theirs.get("head_dim") or width // heads, (width // heads,)),
        "rope_type": (
            ", ".join(sorted({rope.get("rope_type", "default") for rope in ropes})) or "default",
            ("default",),
        ),
        "classifier_pooling": (theirs.get("classifier_pooling", "cls") if _classes_of(theirs) else "cls", ("cls",)),
        "layer_types": (set(theirs.get("layer_types") or ()) <= {"full_attention"}, (True,)),
        "has a rope_theta": (form == "roberta" or bool(ropes), (True,)),
    }
    faults = [f"{name}={has!r}, ours has {wants[0]!r}" for name, (has, wants) in foreign.items() if has not in wants]
    if faults:
        raise ValueError(f"the model in {folder} is not of our form: " + "; ".join(faults))
    kinds = {activation: kind for kind, activation in _OUR_ACTIVATION.items()}
    positions = theirs["max_position_embeddings"] - (theirs["pad_token_id"] + 1 if form == "roberta" else 0)
    return ModelConfig(
        family="decoder" if form == "llama" else "encoder",
        form="modern" if form == "modern" else "roberta",
        layers=theirs["num_hidden_layers"],
        width=width,
        heads=heads,
        kv_heads=theirs.get("num_key_value_heads") if form == "llama" else None,
        feed_forward="gelu" if form == "roberta" else kinds[activation],
        feed_forward_width=theirs["intermediate_size"],
        sequence_length=positions,
        rotary_base=ropes[0]["rope_theta"] if ropes else 10_000.0,
        norm_epsilon=theirs[{"roberta": "layer_norm_eps", "modern": "norm_eps", "llama": "rms_norm_eps"}[form]],
        tied_embeddings=theirs.get("tie_word_embeddings", form != "llama"),
    )


def _ropes(theirs: dict[str, Any], form: str) -> list[dict[str, Any]]:
    """Rotary settings of the layers that exist; older folders of Llama say them as rope_theta."""
    if form == "roberta":
        return []
    parameters = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if form == "modern":
        parameters = parameters.get("full_attention", {})
        parameters = {"rope_theta": theirs.get("global_rope_theta", 160_000.0)} | parameters
    else:
        parameters = {"rope_theta": theirs.get("rope_theta", 10_000.0)} | parameters
    return [parameters]


def _export_tokenizer(
    config: ModelConfig, tokenizer_path: Path, vocabulary: Vocabulary, folder: Path, chat_template: str | None
) -> None:
    """The tokenizer, made to put the special tokens around a text by itself, as its readers expect of it."""
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
        # A decoder goes on from what it is given, so nothing is put after it.
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
        # Older versions of transformers, and other programs, read the one, newer ones the other.
        settings["chat_template"] = chat_template
        (folder / TEMPLATE_FILE).write_text(chat_template, encoding="utf-8")
    _write_json(folder / SETTINGS_FILE, settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
